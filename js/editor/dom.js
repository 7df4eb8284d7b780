/** Small helpers to build the editors' elements. */

const PATHS = {
  brush: "M4 20c2.5 0 4-1 4-3a2.5 2.5 0 1 1 4.6 1.4C11.6 20.5 9 21 4 20zM11 14.5 19 4.500a1.4 1.4 0 0 1 2 2L13 16",
  eraser: "M8.5 19.5 4 15a1.5 1.5 0 0 1 0-2l8.5-8.500a1.5 1.5 0 0 1 2 0l5 5a1.5 1.5 0 0 1 0 2l-8 8zM8.5 9l7 7M8 19.500h12",
  freehand: "M3 17c3-9 6-11 7-9s-3 8-1 9 5-7 7-6 0 5 5 3",
  line: "M5 19 19 5M3.5 19a1.5 1.5 0 1 0 3 0 1.5 1.5 0 1 0-3 0M17.5 5a1.5 1.5 0 1 0 3 0 1.5 1.5 0 1 0-3 0",
  undo: "M8 5 4 9l4 4M4 9h10a5.5 5.5 0 0 1 0 11h-4",
  redo: "m16 5 4 4-4 4M20 9H10a5.5 5.5 0 0 0 0 11h4",
  trash: "M4 7h16M9 7V4.500h6V7M6.5 7l1 13h9l1-13M10 11v5.500M14 11v5.5",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  help: "M9 9a3 3 0 1 1 4.5 2.600C12.5 12.2 12 13 12 14M12 17.500v.1M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  load: "M4 19.500V5h5.500l2 2.500H20v12zM12 17v-6M9.5 13.5 12 11l2.5 2.5",
  save: "M12 4v10M8 10.500l4 4 4-4M4 16v4h16v-4",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 2.5-2.500L20 17M15 9.500a1.2 1.2 0 1 0 2.4 0 1.2 1.2 0 1 0-2.4 0",
  select: "m6 3 12 9-5.5 1 3 6-2.5 1.2-3-6L6 18z",
  lasso: "M8 16.500C5 15.5 3 13.3 3 10.5 3 7 7 4 12 4s9 2.8 9 6.5-4 6.5-9 6.500c-1 0-2-.1-3-.4M8 16.500a2 2 0 1 1-2 2c0-1.5 1.5-2 2-2zM7 20.500c0 1-.5 1.5-1.5 2",
  box: "M4 7V4h3M10.5 4h3M17 4h3v3M20 10.500v3M20 17v3h-3M13.5 20h-3M7 20H4v-3M4 13.500v-3",
  flipH: "M12 3v18M9 7v10H3zM15 7v10h6z",
  flipV: "M3 12h18M7 9h10V3zM7 15h10v6z",
  copy: "M8 8h12v12H8zM16 8V4H4v12h4",
  cut: "M4 4h16v16H4zM8 8l8 8M16 8l-8 8",
  up: "m6 14 6-6 6 6",
  down: "m6 10 6 6 6-6",
  close: "M6 6l12 12M18 6 6 18",
  play: "M7 5v14l11-7z",
  check: "m5 12.5 4.5 4.500L19 7.5",
  arrow: "M5 19 18 6M10 6h8v8",
  eye: "M2.5 12C5 7.5 8.3 5.5 12 5.500s7 2 9.5 6.500c-2.5 4.5-5.8 6.5-9.5 6.500S5 16.5 2.5 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
};

/**
 * Make an element.
 * @param {string} tag
 * @param {object} [properties] class, text, attributes; on: {event: listener}
 * @param {...(Node | string | null | undefined)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * Give an element the children it should have, but keep those that are there, with their focus and captured pointer, wherever
 * a child of the same tag stands in the same place. Listeners are not compared: they belong on the element itself.
 * @param {Element} parent
 * @param {Node[]} wanted
 */
export function updateChildren(parent, wanted) {
  wanted.forEach((child, place) => {
    const old = parent.childNodes[place];
    if (!old) parent.append(child);
    else if (old.nodeName !== child.nodeName) old.replaceWith(child);
    else if (!old.isEqualNode(child)) update(old, child);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

function update(old, wanted) {
  if (old.nodeType === Node.TEXT_NODE) {
    old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  updateChildren(old, [...wanted.childNodes]);
}

/** A line drawing of 24 x 24. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with an icon, a text, or both.
 * @param {{icon?: string, text?: string, label?: string, key?: string, run: () => void, class?: string, id?: string}} settings
 *   label: the name, for who cannot see the icon.  key: its shortcut, shown in the tip.
 */
export function button({ icon: name, text, label = text, key, run, class: extra = "", id }) {
  return element("button", {
    type: "button", class: `framepainter-button ${extra} ${text ? "" : "framepainter-icon"}`, "aria-label": label, "data-action": id,
    title: key ? `${label} (${key})` : label, on: { click: run },
  }, name ? icon(name) : null, text ? element("span", { text }) : null);
}

/** Show whether a button is switched on. */
export function press(made, on) {
  made.setAttribute("aria-pressed", String(Boolean(on)));
}

/**
 * A slider with a number beside it.
 * @param {{label: string, min: number, max: number, step?: number, unit?: string, value: number,
 *   change: (value: number) => void}} settings
 * @returns {HTMLElement & {set: (value: number) => void}}
 */
export function slider({ label, min, max, step = 1, unit = "", value, change }) {
  const limit = (v) => Math.min(max, Math.max(min, v));
  const range = element("input", { type: "range", min, max, step, "aria-label": label });
  const number = element("input", { type: "number", min, max, step, "aria-label": `${label}${unit ? ` in ${unit}` : ""}` });
  const made = element("label", { class: "framepainter-slider", title: label }, element("span", { text: label }), range, number,
                       unit ? element("span", { class: "framepainter-unit", text: unit }) : null);
  made.set = (v) => {
    range.value = number.value = String(Math.round(v * 10) / 10);
  };
  range.addEventListener("input", () => {
    number.value = range.value;
    change(Number(range.value));
  });
  number.addEventListener("input", () => {
    if (number.value === "" || Number.isNaN(Number(number.value))) return;
    range.value = number.value;
    change(limit(Number(number.value)));
  });
  number.addEventListener("change", () => made.set(limit(Number(number.value) || min)));
  made.set(value);
  return made;
}

/** A group of buttons in a toolbar. */
export function group(label, ...children) {
  return element("div", { class: "framepainter-group", role: "group", "aria-label": label }, ...children);
}

/** A canvas of so many pixels and its context. */
export function newCanvas(width, height, settings) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, width);
  canvas.height = Math.max(1, height);
  return { canvas, context: canvas.getContext("2d", settings) };
}
