import { compareSizes, counted, fitItems, KINDS, readState, rounded, writeState } from "../state.js";

/** @typedef {import("../state.js").Size} Size */

const MAX_STEPS = 500;

/** What is being edited: entries in pixels of the ground, with undo and redo. Every change is written through at once. */
export class Drawing {
  /**
   * @param {import("../state.js").Kind} kind
   * @param {string} text the node's
   * @param {(text: string) => void} write puts a text into the node
   */
  constructor(kind, text, write) {
    this.kind = kind;
    this.write = write;
    /** @type {Size} */
    this.ground = { width: 512, height: 512 };
    this.steps = [];
    this.at = -1;
    this.show(text);
  }

  /** Show a text as the present step; what could be undone or redone stays. */
  show(text) {
    if (this.at < 0) this.at = this.steps.push({ text }) - 1;
    else if (text !== this.text) this.#step({ text });
    this.#read();
  }

  /** The text as it is in the node now. */
  get text() {
    return this.steps[this.at].text;
  }

  /** @param {Size} size of the picture to draw on */
  setGround(size) {
    this.ground = { width: size.width, height: size.height };
    this.#read();
  }

  #read() {
    const step = this.steps[this.at], { state, items, size, problem } = step.read ??= readState(this.kind, step.text);
    this.state = state;
    this.size = size;
    this.problem = problem;
    this.relation = items.length ? compareSizes(size, this.ground) : "same";
    this.items = fitItems(this.kind, items, size, this.ground);
  }

  /** @param {{text: string, read?: object}} step what it holds is not read again if it is known */
  #step(step) {
    this.steps.splice(this.at + 1, Infinity, step);
    if (this.steps.length > MAX_STEPS) this.steps.shift();
    this.at = this.steps.length - 1;
  }

  /**
   * Replace the entries. They come back rounded, as Python will read them.
   * @param {any[]} items in pixels of the ground
   * @param {object} [keys] further keys of the state
   */
  commit(items, keys = {}) {
    const state = { ...this.state, ...keys }, text = writeState(this.kind, state, items, this.ground), size = { ...this.ground };
    if (text === this.text) return;
    this.#step({ text, read: { state, items: rounded(this.kind, items), size, problem: null } });
    this.#read();
    this.write(text);
  }

  /** Add one entry. */
  add(item) {
    this.commit([...this.items, item]);
  }

  /** Replace one entry. */
  replace(index, item) {
    this.commit(this.items.map((old, i) => (i === index ? item : old)));
  }

  /** Take one entry out. */
  remove(index) {
    this.commit(this.items.filter((_, i) => i !== index));
  }

  /** Replace everything by another text. */
  load(text) {
    if (text === this.text) return;
    this.#step({ text });
    this.#read();
    this.write(text);
  }

  /** Take all entries out; a text that cannot be shown goes as a whole. */
  clear() {
    if (this.problem) this.load(KINDS[this.kind].empty);
    else if (this.items.length) this.commit([]);
  }

  /** Make the drawing fit a ground of another aspect ratio. */
  stretch() {
    this.commit(this.items);
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.steps.length - 1;
  }

  /** @param {number} by -1 to undo, 1 to redo */
  travel(by) {
    const to = this.at + by;
    if (to < 0 || to >= this.steps.length) return false;
    this.at = to;
    this.#read();
    this.write(this.text);
    return true;
  }

  /** Whether drawing must wait for the user's word: the drawing is of a picture of another aspect ratio. */
  get locked() {
    return this.relation === "other";
  }

  /** "3 strokes" */
  get summary() {
    return counted(this.kind, this.items);
  }
}
