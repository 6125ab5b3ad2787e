// What the inspector tells is given to each part of the page, which shows what is new in it.

import { $, say } from "./dom.js";
import { Link } from "./link.js";
import { Controls } from "./controls.js";
import { Latency } from "./latency.js";
import { Machine } from "./machine.js";
import { Rooms } from "./rooms.js";
import { Timeline } from "./timeline.js";

class Head {
  show({ explanation, client }) {
    if (explanation !== undefined) say($("explanation"), explanation);
    if (!client) return;
    const { url, status, reason } = client;
    say($("url"), url);
    say($("status"), status);
    $("status").dataset.status = status;
    document.title = `${status} · Inspector`;
    say($("said"), `The client is ${status}${reason === status ? "" : `: ${reason}`}.`);
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
