// Round trips over time; where the connection was lost, the ground is shaded. A point is [when, seconds], or
// [when, "lost"], or [when, "made"].

import { $, clock, drawn, element, milliseconds, say } from "./dom.js";

const MAX_POINTS = 600, HEIGHT = 150, LEFT = 58, RIGHT = 8, TOP = 10, BOTTOM = 22; // points; pixels
const FIGURES = 20;

export class Latency {
  constructor() {
    this.points = [];
    this.width = 0;
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe($("latency"));
    setInterval(() => this.isLost() && this.draw(), 1000);
  }

  isLost() {
    return this.points.at(-1)?.[1] === "lost";
  }

  show({ latency }) {
    if (!latency) return;
    this.points = [...(latency.afresh ? [] : this.points), ...latency.items].slice(-MAX_POINTS);
    const trips = this.points.filter(isTrip);
    if (trips.length) {
      const sorted = trips.map(([, seconds]) => seconds).sort((a, b) => a - b);
      const outages = this.points.filter(([, what]) => what === "lost").length;
      this.summary =
        `Last ${milliseconds(trips.at(-1)[1])}, median ${milliseconds(sorted[Math.floor(sorted.length / 2)])}, ` +
        `slowest ${milliseconds(sorted.at(-1))}, of ${trips.length} round trip${trips.length === 1 ? "" : "s"}` +
        `${outages ? `; lost ${["", "once", "twice"][outages] ?? `${outages} times`}` : ""}.`;
      say($("latency-summary"), this.summary);
      const figures = trips.slice(-FIGURES).reverse();
      $("latency-figures").replaceChildren(
        ...figures.map(([when, seconds]) => element("li", { textContent: `${clock(when)}: ${milliseconds(seconds)}` })),
      );
    }
    this.draw();
  }

  draw() {
    const trips = this.points.filter(isTrip);
    if (!trips.length || this.width < 100) return $("latency").replaceChildren();
    const first = this.points[0][0];
    const last = Math.max(this.isLost() ? Date.now() / 1000 : this.points.at(-1)[0], first + 10);
    const most = niceAbove(Math.max(...trips.map(([, seconds]) => seconds)) * 1000);
    const x = (when) => LEFT + ((when - first) / (last - first)) * (this.width - LEFT - RIGHT);
    const y = (seconds) => HEIGHT - BOTTOM - ((seconds * 1000) / most) * (HEIGHT - TOP - BOTTOM);
    const svg = drawn("svg", {
      class: "chart", role: "img", "aria-label": `Latency over time. ${this.summary}`,
      width: this.width, height: HEIGHT, viewBox: `0 0 ${this.width} ${HEIGHT}`,
    });
    for (const part of [0, 0.5, 1]) {
      const at = y((most * part) / 1000);
      svg.append(
        drawn("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: at, y2: at }),
        drawn("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, `${+(most * part).toPrecision(3)} ms`),
      );
    }
    const line = [];
    let begins = true;
    this.points.forEach(([when, what], index) => {
      if (what === "lost") {
        const until = this.points[index + 1]?.[0] ?? last;
        const width = Math.max(x(until) - x(when), 1);
        svg.append(drawn("rect", { class: "outage", x: x(when), y: TOP, width, height: HEIGHT - TOP - BOTTOM }));
      }
      if (typeof what === "string") {
        begins = true;
        return;
      }
      line.push(`${begins ? "M" : "L"}${x(when).toFixed(1)} ${y(what).toFixed(1)}`);
      if (begins || this.points.length <= 120) {
        svg.append(drawn("circle", { class: "trip", cx: x(when), cy: y(what), r: 2.5 }));
      }
      begins = false;
    });
    svg.append(
      drawn("path", { class: "trips", d: line.join("") }),
      drawn("text", { x: LEFT, y: HEIGHT - 6 }, clock(first, false)),
      drawn("text", { x: this.width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, clock(last, false)),
    );
    $("latency").replaceChildren(svg);
  }
}

function isTrip([, what]) {
  return typeof what === "number";
}

// 1, 2 or 5 times a power of ten, or the next above.
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 5, 10].find((each) => each * power >= value) * power;
}
