// Small helpers. Text from outside is only ever put in as text.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Changing what is the same would make screen readers say it again.
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

// A status has its colour in the style sheet; its name is always there too.
export function badge(state, status) {
  const made = element("span", { className: "badge", textContent: state });
  made.dataset.status = status;
  return made;
}

export function clock(seconds, fraction = true) {
  const date = new Date(seconds * 1000);
  const text = date.toLocaleTimeString([], { hourCycle: "h23" });
  return fraction ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

export function milliseconds(seconds) {
  const value = seconds * 1000;
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0)} ms`;
}
