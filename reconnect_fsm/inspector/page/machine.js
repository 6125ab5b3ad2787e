// The picture of the machine: the present state is lit, the last move is highlighted, and both are said in words.

import { $, badge, clock, element } from "./dom.js";

const NARROW = matchMedia("(max-width: 38rem)");

export class Machine {
  constructor() {
    this.client = null;
    this.last = null;
    this.drawing = null;
    this.drawings = {};
    this.draw();
    NARROW.addEventListener("change", () => this.draw());
  }

  async draw() {
    const name = NARROW.matches ? "machine-cards.svg" : "machine.svg";
    if (!this.drawings[name]) {
      const text = await (await fetch(name)).text();
      const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
      const width = svg.viewBox.baseVal.width;
      svg.removeAttribute("height");
      svg.setAttribute("width", width);
      this.drawings[name] = document.importNode(svg, true);
    }
    if (name !== (NARROW.matches ? "machine-cards.svg" : "machine.svg")) return; // the window changed meanwhile
    this.drawing = this.drawings[name];
    $("drawing").replaceChildren(this.drawing);
    this.light();
  }

  show(update) {
    if (update.transitions) this.last = update.transitions.items.at(-1) ?? this.last;
    if (update.client) this.client = update.client;
    if (update.client || update.transitions) this.light();
  }

  light() {
    if (!this.client) return;
    const { state, status, alive, since, machine } = this.client;
    const from = since === null ? "" : `, since ${clock(since, false)}`;
    $("machine-now").replaceChildren("Now in ", badge(state, status), `${from}. Alive in it: ${alive || "nothing special"}.`);
    if (this.last) {
      const { event, old, new: next } = this.last;
      $("machine-move").replaceChildren("Last move: ", element("strong", { textContent: event }), ` led from ${old} to ${next}.`);
    }
    if (!this.drawing) return;
    this.drawing.setAttribute("aria-label", `${machine}: now in ${state}`);
    this.drawing.removeAttribute("aria-labelledby");
    for (const lit of this.drawing.querySelectorAll(".lit, .moved")) lit.classList.remove("lit", "moved");
    for (const part of this.drawing.querySelectorAll(`[data-state="${CSS.escape(state)}"]`)) part.classList.add("lit");
    if (!this.last) return;
    const move = `${this.last.event}:${this.last.old}:${this.last.new}`;
    for (const part of this.drawing.querySelectorAll(`[data-moves~="${CSS.escape(move)}"]`)) part.classList.add("moved");
  }
}
