// The rooms: counts by state, which are filters too, and one page of those that match. The inspector does the searching.

import { $, badge, element, say } from "./dom.js";

const TYPING = 150; // milliseconds after the last key before it is searched

export class Rooms {
  constructor(link) {
    this.link = link;
    this.states = new Set();
    this.page = 0;
    this.pages = 1;
    this.body = $("list").tBodies[0];
    this.filters = new Map();
    $("previous").onclick = () => this.turn(-1);
    $("following").onclick = () => this.turn(1);
    $("search").oninput = () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.look(0), TYPING);
    };
  }

  turn(by) {
    const page = this.page + by;
    if (page >= 0 && page < this.pages) this.look(page);
  }

  look(page = this.page) {
    this.page = page;
    this.link.send({ look: { states: [...this.states], text: $("search").value, page } });
  }

  show({ rooms }) {
    if (!rooms) return;
    $("rooms").hidden = false;
    this.page = rooms.page;
    this.pages = rooms.pages;
    this.showCounts(rooms);
    const first = rooms.page * rooms.size + 1;
    const of = rooms.matching === rooms.total ? "" : `, of ${count(rooms.total)} in all`;
    say($("shown"), rooms.matching
      ? `${count(first)} to ${count(first + rooms.rows.length - 1)} of ${count(rooms.matching)} rooms${of}`
      : `No room matches${of}`);
    $("previous").setAttribute("aria-disabled", String(rooms.page === 0));
    $("following").setAttribute("aria-disabled", String(rooms.page >= rooms.pages - 1));
    this.body.replaceChildren(...rooms.rows.map(row));
  }

  showCounts({ counts, total }) {
    for (const [state, status, number] of counts) {
      let filter = this.filters.get(state);
      if (!filter) {
        filter = this.filter(state, status);
        this.filters.set(state, filter);
        $("states").append(filter.button);
      }
      say(filter.number, count(number));
      filter.bar.style.width = `${total ? Math.max((100 * number) / total, number ? 2 : 0) : 0}%`;
    }
  }

  filter(state, status) {
    const number = element("span", { className: "number" });
    const bar = element("span", { className: "bar" });
    const button = element("button", { type: "button", className: "state" }, `${state} `, number, bar);
    button.dataset.status = status;
    button.dataset.filter = state;
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => {
      const pressed = !this.states.delete(state);
      if (pressed) this.states.add(state);
      button.setAttribute("aria-pressed", String(pressed));
      this.look(0);
    };
    return { button, number, bar };
  }
}

function row([id, kind, state, status, reason, permission]) {
  return element(
    "tr",
    {},
    element("th", { scope: "row", textContent: id }),
    element("td", {}, element("code", { textContent: kind })),
    element("td", {}, badge(state, status)),
    element("td", { textContent: permission ?? "–" }),
    element("td", { textContent: reason }),
  );
}

function count(number) {
  return number.toLocaleString("en");
}
