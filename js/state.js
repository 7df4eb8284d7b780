/**
 * The editors' JSON texts (docs/editor_state.md): reading, checking, fitting to a picture, writing.
 *
 * @typedef {"sketch" | "drag" | "coarse"} Kind
 * @typedef {{width: number, height: number}} Size
 */

export const VERSION = 1;
const ASPECT_TOLERANCE = 0.02;
const MAX_SIDE = 16384;
const MAX_NUMBER = 1e9;

/** What differs between the three: the key of the list, the text of nothing, words for messages. */
export const KINDS = {
  sketch: { list: "strokes", empty: "", one: "stroke", many: "strokes", title: "Sketch", node: "Sketch Signal" },
  drag: { list: "drags", empty: "[]", one: "drag", many: "drags", title: "Drag points", node: "Drag Signal" },
  coarse: { list: "pieces", empty: "", one: "piece", many: "pieces", title: "Coarse edit", node: "Coarse Edit Signal" },
};

const isNumber = (v) => typeof v === "number" && Math.abs(v) <= MAX_NUMBER;
const isList = (v, length) => Array.isArray(v) && v.every(isNumber) && (length === undefined || v.length === length);
const isSide = (v) => Number.isInteger(v) && v >= 1 && v <= MAX_SIDE;
const isFlag = (v) => v === undefined || typeof v === "boolean";

/** What is wrong with one entry, or nothing. */
const CHECKS = {
  sketch: (s) => {
    if (typeof s !== "object" || s === null) return "is not an object";
    if (!["brush", "eraser", undefined].includes(s.tool)) return "has an unknown tool";
    if (s.size !== undefined && !(isNumber(s.size) && s.size >= 1)) return "has a size below 1";
    if (!isList(s.points ?? []) || (s.points ?? []).length % 2) return "has points that are not pairs of numbers";
  },
  drag: (d) => (isList(d, 4) ? undefined : "is not four numbers"),
  coarse: (p) => {
    if (typeof p !== "object" || p === null) return "is not an object";
    if (!isList(p.outline) || p.outline.length < 6 || p.outline.length % 2) return "has no outline of three corners or more";
    if (p.move !== undefined && !isList(p.move, 2)) return "has a move that is not two numbers";
    if (p.scale !== undefined && !(isList(p.scale, 2) && p.scale.every((v) => Math.abs(v) >= 0.01))) return "has a bad scale";
    if (p.rotate !== undefined && !isNumber(p.rotate)) return "has a rotate that is not a number";
    if (!isFlag(p.copy) || !isFlag(p.delete)) return "has a copy or delete that is not true or false";
  },
};

/**
 * Read an editor's text.
 * @param {Kind} kind
 * @param {string} text
 * @returns {{state: object, items: any[], size: Size | null, problem: string | null}} size: of the picture drawn on.
 *   problem: why the text cannot be shown; then there are no items.
 */
export function readState(kind, text) {
  const { list, one } = KINDS[kind];
  const bad = (problem) => ({ state: {}, items: [], size: null, problem });
  let state = {};
  if (String(text ?? "").trim()) {
    try {
      state = JSON.parse(text);
    } catch {
      return bad("the text in this node is not valid JSON");
    }
  }
  if (Array.isArray(state) && kind === "drag") state = { drags: state };
  if (typeof state !== "object" || state === null || Array.isArray(state)) return bad("the text in this node is not a JSON object");
  const version = state.version ?? VERSION;
  if (!Number.isInteger(version) || version < 1) return bad("the text in this node has no valid version");
  if (version > VERSION) return bad(`the text in this node is of version ${version}, made by a newer ComfyUI-FramePainter`);
  const other = Object.entries(KINDS).find(([name, { list: key }]) => name !== kind && key in state && !(list in state));
  if (other) return bad(`the text in this node is a drawing of ${other[1].node}`);
  const items = state[list] ?? [];
  if (!Array.isArray(items)) return bad(`"${list}" is not a list`);
  for (const [i, item] of items.entries()) {
    const wrong = CHECKS[kind](item);
    if (wrong) return bad(`${one} ${i + 1} ${wrong}`);
  }
  let size = null;
  if (state.width !== undefined || state.height !== undefined) {
    if (!isSide(state.width) || !isSide(state.height)) return bad("width or height is not a whole number of pixels");
    size = { width: state.width, height: state.height };
  }
  const full = kind === "sketch" ? items.map((s) => ({ tool: "brush", size: 1, points: [], ...s })) : items;
  return { state, items: full, size, problem: null };
}

/** Entry -> the same rounded, and its text; strokes do not change, and there may be hundreds of them. */
const WRITTEN = new WeakMap();

function written(kind, item) {
  let found = typeof item === "object" ? WRITTEN.get(item) : undefined;
  if (!found) {
    const rounded = ROUND[kind](item);
    found = { rounded, text: JSON.stringify(rounded) };
    WRITTEN.set(item, found);
    WRITTEN.set(rounded, found);
  }
  return found;
}

/** Entries as they are read back from their text. */
export const rounded = (kind, items) => items.map((item) => written(kind, item).rounded);

/**
 * Write an editor's text: short, coordinates to a tenth of a pixel.
 * @param {Kind} kind
 * @param {object} state what was read; its unknown keys are kept
 * @param {any[]} items
 * @param {Size} size of the picture drawn on
 * @returns {string}
 */
export function writeState(kind, state, items, size) {
  const { list, empty } = KINDS[kind];
  const out = { version: VERSION, width: size.width, height: size.height, ...state };
  Object.assign(out, { version: VERSION, width: size.width, height: size.height });
  delete out[list];
  const plain = Object.keys(out).every((key) => ["version", "width", "height"].includes(key));
  if (!items.length && plain) return empty;
  return `${JSON.stringify(out).slice(0, -1)},"${list}":[${items.map((item) => written(kind, item).text).join()}]}`;
}

const round = (value, digits) => Math.round(value * 10 ** digits) / 10 ** digits + 0;  // + 0 turns -0 into 0
const tenths = (values) => values.map((v) => round(v, 1));
const factor = (v) => (Math.sign(v) || 1) * Math.max(0.01, round(Math.abs(v), 4));
const ROUND = {
  sketch: (s) => ({ ...s, size: Math.max(1, round(s.size, 1)), points: withoutRepeats(tenths(s.points)) }),
  drag: tenths,
  coarse: (p) => ({
    ...p, outline: tenths(p.outline), ...(p.move && { move: tenths(p.move) }), ...(p.scale && { scale: p.scale.map(factor) }),
    ...(p.rotate !== undefined && { rotate: round(p.rotate, 2) }),
  }),
};

/** Points without those that equal the one before. */
function withoutRepeats(points) {
  const out = [];
  for (let i = 0; i < points.length; i += 2) {
    if (!i || points[i] !== out.at(-2) || points[i + 1] !== out.at(-1)) out.push(points[i], points[i + 1]);
  }
  return out;
}

/**
 * Whether a drawing fits a picture.
 * @param {Size | null} drawn size of the picture drawn on
 * @param {Size} picture
 * @returns {"same" | "scaled" | "other"} other: the aspect ratios differ by more than 2 %
 */
export function compareSizes(drawn, picture) {
  if (!drawn || (drawn.width === picture.width && drawn.height === picture.height)) return "same";
  const ratio = (drawn.width / drawn.height) / (picture.width / picture.height);
  return Math.abs(ratio - 1) > ASPECT_TOLERANCE ? "other" : "scaled";
}

/**
 * Bring entries from the picture drawn on to one of another size.
 * @param {Kind} kind
 * @param {any[]} items
 * @param {Size | null} drawn
 * @param {Size} picture
 * @returns {any[]} the same list, if nothing is to be done
 */
export function fitItems(kind, items, drawn, picture) {
  if (!drawn || compareSizes(drawn, picture) === "same") return items;
  const x = picture.width / drawn.width, y = picture.height / drawn.height;
  const fit = (values) => values.map((v, i) => v * (i % 2 ? y : x));
  if (kind === "sketch") return items.map((s) => ({ ...s, size: s.size * Math.sqrt(x * y), points: fit(s.points) }));
  if (kind === "drag") return items.map(fit);
  return items.map((p) => ({ ...p, outline: fit(p.outline), ...(p.move && { move: fit(p.move) }) }));
}

/** "3 strokes"; "3 strokes, 1 eraser pass". */
export function counted(kind, items) {
  const count = (number) => `${number} ${number === 1 ? KINDS[kind].one : KINDS[kind].many}`;
  const passes = kind === "sketch" ? items.filter((stroke) => stroke.tool === "eraser").length : 0;
  return passes ? `${count(items.length - passes)}, ${passes} eraser ${passes === 1 ? "pass" : "passes"}` : count(items.length);
}
