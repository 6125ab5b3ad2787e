// The buttons. A button that would do nothing now says why. It keeps the focus, so it is marked, not disabled.

import { $, element, say } from "./dom.js";

const ACTIONS = {
  connect: ["Connect", "make sure that it is connected, or on its way"],
  retry: ["Retry now", "drop what there is, and make a fresh attempt"],
  close: ["Close", "stop, until connect or retry is asked for"],
  offline: ["Go offline", "tell the client that this machine has no network"],
  online: ["Go online", "tell the client that this machine has a network again"],
};

export class Controls {
  constructor(link) {
    this.link = link;
    this.why = {};
    this.buttons = {};
    for (const [name, [label, what]] of Object.entries(ACTIONS)) {
      const button = element("button", { type: "button", textContent: label, title: what, id: `do-${name}` });
      button.setAttribute("aria-describedby", "hint");
      button.onclick = () => {
        if (this.why[name]) say($("hint"), `${label} would do nothing: ${this.why[name]}.`);
        else link.send({ do: name });
      };
      button.onfocus = button.onmouseenter = () => this.hint(name);
      button.onblur = button.onmouseleave = () => this.hint(null);
      this.buttons[name] = button;
      $("actions").append(button);
    }
    this.hint(null);
  }

  hint(name) {
    this.pointed = name;
    if (name === null) return say($("hint"), this.summary());
    const [label, what] = ACTIONS[name];
    say($("hint"), this.why[name] ? `${label} would do nothing: ${this.why[name]}.` : `${label}: ${what}.`);
  }

  summary() {
    const idle = Object.entries(this.why).filter(([, why]) => why);
    return idle.map(([name, why]) => `${ACTIONS[name][0]}: ${why}.`).join(" ");
  }

  show(update) {
    if (update.actions) {
      this.why = update.actions;
      for (const [name, button] of Object.entries(this.buttons)) {
        button.setAttribute("aria-disabled", String(Boolean(this.why[name])));
        button.title = this.why[name] ? `would do nothing: ${this.why[name]}` : ACTIONS[name][1];
      }
      this.hint(this.pointed);
    }
    if (update.faults) this.showFaults(update.faults);
    if (update.notices) say($("notices"), update.notices.at(-1));
  }

  showFaults(faults) {
    $("faults-part").hidden = faults.length === 0;
    const known = new Map([...$("faults").children].map((button) => [button.textContent, button]));
    for (const [name, running] of faults) {
      let button = known.get(name);
      if (!button) {
        button = element("button", { type: "button", textContent: name });
        button.onclick = () => this.link.send({ cause: name });
        $("faults").append(button);
      }
      button.setAttribute("aria-busy", String(running));
    }
  }
}
