import { element } from "./dom.js";

const COMMON = [
  ["Ctrl+Z", "Undo"], ["Ctrl+Shift+Z, Ctrl+Y", "Redo"], ["Wheel, + -, pinch", "Zoom"], ["Space + drag, middle drag, two fingers", "Move the view"],
  ["0", "Fit to window"], ["1", "Actual size"], ["Comma, Period", "Frame before, after, of a video"], ["?", "This list"], ["Esc, Ctrl+Enter", "Done"],
  ["Ctrl+Shift+Enter", "Done and run"],
];

/**
 * The list of shortcuts.
 * @param {string[][]} keys of the tool: [keys, what they do]
 * @returns {Node[]}
 */
export function helpList(keys) {
  const rows = [...keys, ...COMMON].flatMap(([names, what]) => [
    element("dt", {}, ...names.split(", ").map((name) => element("kbd", { text: name }))), element("dd", { text: what }),
  ]);
  return [element("h3", { text: "Shortcuts" }), element("dl", {}, ...rows)];
}
