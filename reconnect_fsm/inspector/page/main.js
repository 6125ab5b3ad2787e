// Each update of the inspector is given to every part of the page, which shows its own part of it.

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
  (update) => parts.forEach((part) => part.show(update)),
  (trouble) => {
    say($("trouble"), trouble);
    $("trouble").hidden = !trouble;
    document.body.classList.toggle("stale", Boolean(trouble));
  },
);
const rooms = new Rooms(link);
const parts = [new Head(), new Controls(link), new Machine(), new Timeline(), new Latency(), rooms];
link.onOpen = () => rooms.look();
