// What the inspector tells is given to each part of the page, which shows what is new in it.

import { $, say } from "./dom.js";
import { Link } from "./link.js";
import { Controls } from "./controls.js";
import { Latency } from "./latency.js";
import { Machine } from "./machine.js";
import { Rooms } from "./rooms.js";
import { Timeline } from "./timeline.js";

class Head {
  constructor() {
    this.client = null;
    this.ahead = 0; // seconds that the inspector's clock is ahead of ours
    setInterval(() => this.countDown(), 100);
  }

  show(news) {
    if (news.now !== undefined) this.ahead = news.now - Date.now() / 1000;
    if (news.explanation !== undefined) {
      $("explanation").hidden = !news.explanation;
      say($("explanation"), news.explanation);
    }
    if (!news.client) return;
    const { url, status, state, reason } = (this.client = news.client);
    say($("url"), url);
    say($("status"), status);
    $("status").dataset.status = status;
    say($("reason"), reason);
    document.title = `${status} · Inspector`;
    say($("said"), `The client is ${status}${state === status ? "" : `, ${state}`}: ${reason}.`);
    this.countDown();
  }

  countDown() {
    const { retry_at: due, attempt } = this.client ?? {};
    if (due === undefined || due === null) return say($("next"), "");
    const left = Math.max(due - Date.now() / 1000 - this.ahead, 0);
    say($("next"), `Retry ${attempt} in ${left.toFixed(1)} s.`);
  }
}

const link = new Link(
  (news) => parts.forEach((part) => part.show(news)),
  (trouble) => {
    say($("trouble"), trouble);
    $("trouble").hidden = !trouble;
    document.body.classList.toggle("stale", Boolean(trouble));
  },
);
const rooms = new Rooms(link);
const parts = [new Head(), new Controls(link), new Machine(), new Timeline(), new Latency(), rooms];
link.opened = () => rooms.look();
