// The transitions of the client, the latest on top.

import { $, badge, clock, element } from "./dom.js";

const MAX_ROWS = 300; // rows

export class Timeline {
  constructor() {
    this.body = $("timeline").tBodies[0];
  }

  show({ transitions }) {
    if (!transitions) return;
    if (transitions.afresh) this.body.replaceChildren();
    for (const each of transitions.items.slice(-MAX_ROWS)) this.body.prepend(this.row(each));
    while (this.body.rows.length > MAX_ROWS) this.body.lastElementChild.remove();
    $("timeline").parentElement.classList.toggle("filled", this.body.rows.length > 0);
  }

  row({ time, event, old, new: next, status, reason, attempt, retry_in: wait }) {
    const words = wait === null ? reason : `${reason} (retry ${attempt} in ${wait.toFixed(2)} s)`;
    return element(
      "tr",
      {},
      element("td", {}, element("time", { dateTime: new Date(time * 1000).toISOString(), textContent: clock(time) })),
      element("td", {}, element("code", { textContent: event })),
      element("td", {}, `${old} → `, badge(next, status)),
      element("td", { textContent: words }),
    );
  }
}
