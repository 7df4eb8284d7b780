import { api } from "../../scripts/api.js";
import { explain, legend, PROMPTS, showWeight, stateField, weightField, wordRow } from "./chip_parts.js";
import { button, element, updateChildren } from "./editor/dom.js";
import { NodeWidget, remember, ROOT } from "./node_widget.js";
import { originOf, widgetOf } from "./graph.js";
import { addStyle } from "./style.js";
import { changed, chipsOf, describe, draggedWeight, limited, LISTS, sentPrompt, writeWords } from "./words.js";

const PATH = "/framepainter/words";
const MIN_WIDTH = 300, MIN_HEIGHT = 200;
/** How often a node looks at its prompts: other widgets do not tell when they are typed in. */
const LOOK_MS = 250, RETRY_MS = 4000;
const DRAG_FROM = 4;  // pixels; less is a click
const STEP = 0.1, LARGE_STEP = 1;
const BY_TEXT = "Name words as text, for instance “dog *2”.";
const HELP = "Click a word: the edit may act where it looks; with Shift: it may not. Drag an edited word sideways, or press up and "
           + "down, for its weight. Double click or Delete removes its choices.";

/** Prompt Edit's words: a chip for every word of both prompts. Its value is the text of the input `words`. */
class WordsWidget extends NodeWidget {
  constructor(node, name, text) {
    super(node, element("div", { class: `${ROOT} framepainter-words`, "data-kind": "words" }), LOOK_MS);
    Object.assign(this, { name, text, reading: null, asked: null, problem: "", picked: null, press: null, typed: false });
    this.#build();
    this.widget = node.addDOMWidget(name, "framepainter_words", this.root, {
      getValue: () => this.text,
      setValue: (value) => this.receive(value),
      getMinHeight: () => MIN_HEIGHT,
      hideOnZoom: false,
    });
    this.widget.serialize = true;
    this.follow();
  }

  // Elements ------------------------------------------------------------------------------------------

  #build() {
    const keep = (event) => event.stopPropagation();  // a press here is not the start of moving the node
    this.rows = element("div", { class: "framepainter-word-rows", title: HELP, on: {
      pointerdown: (event) => this.#pressed(event), pointermove: (event) => this.#moved(event),
      pointerup: () => this.#released(), pointercancel: () => this.#dropped(),
      click: (event) => this.#clicked(event), keydown: (event) => this.#key(event),
      keyup: (event) => event.key === " " && event.preventDefault(),  // some browsers click on it
      focusin: (event) => this.#focused(event),
    } });
    this.field = element("textarea", { class: "framepainter-words-text", spellcheck: "false", "aria-label": "Choices for single words, as text",
      placeholder: "dog *2\n@dog\ncat > dog", on: { input: () => this.write(this.field.value, false), change: remember } });
    this.legend = legend();
    this.status = element("div", { class: "framepainter-status", role: "status" });
    this.detail = element("div", { class: "framepainter-detail" });
    this.switch = button({ text: "As text", id: "text", run: () => this.#toggle() });
    this.reset = button({ icon: "undo", text: "Reset", label: "Remove the choices for all words", id: "reset",
                          run: () => this.write("") });
    this.bar = element("div", { class: "framepainter-row" }, this.detail, this.switch, this.reset);
    for (const part of [this.rows, this.field, this.bar, this.status]) {
      for (const type of ["pointerdown", "mousedown", "dblclick"]) part.addEventListener(type, keep);
    }
    for (const part of [this.rows, this.field]) {
      part.addEventListener("wheel", (event) => part.scrollHeight > part.clientHeight && keep(event), { passive: true });
    }
    this.root.append(this.rows, this.field, this.legend, this.status, this.bar);
    addStyle(this.root);
  }

  // The prompts ---------------------------------------------------------------------------------------

  begun() {
    this.asked = null;
    this.#paint();
  }

  gone() {
    this.loading?.abort();
    this.press = null;
  }

  /** The widget that holds an input's value: the node's own, or the one on the face of its subgraph; null if another node gives it. */
  #holder(name) {
    const found = widgetOf(this.node, name);
    return found && (found.node === this.node || found.node.subgraph) ? found.widget : null;
  }

  /** The node that an input is connected to, as a phrase; null if its value is held by a widget. */
  #linked(name) {
    if (this.#holder(name)) return null;
    const origin = originOf(this.node, name)?.node;
    return origin ? `“${origin.title || origin.type}”` : "another node";
  }

  #value(name) {
    return this.#holder(name)?.value;
  }

  /** What the server is to read, or why it cannot. */
  #question() {
    const asked = { words: this.text, alignment: this.#value("alignment"), as_released: this.#value("as_released") };
    if (this.#linked(this.name)) return { problem: `${this.name} comes from ${this.#linked(this.name)}, so nothing can be chosen here.` };
    for (const list of LISTS) {
      const name = PROMPTS[list], from = this.#linked(name), sent = sentPrompt(String(this.#value(name) ?? ""));
      if (from) return { problem: `${name} comes from ${from}, so its words are known only in a run. ${BY_TEXT}` };
      if (sent === null) return { problem: `${name} has choices in braces, which are drawn at random in each run. ${BY_TEXT}` };
      asked[list] = sent;
    }
    return { asked };
  }

  /** Ask again, if anything has changed. */
  async look() {
    if (this.ended || document.hidden || this.press) return;
    const held = this.#value(this.name);
    if (typeof held === "string" && held !== this.text) this.receive(held);  // it was changed on the face of the subgraph
    const { asked, problem = "" } = this.#question(), key = JSON.stringify([asked, problem]);
    if (key === this.asked && !(this.again < performance.now())) return;
    Object.assign(this, { asked: key, again: Infinity });
    this.loading?.abort();
    this.loading = new AbortController();
    const { signal } = this.loading;
    let reading = null, failed = problem;
    try {
      if (asked) reading = await read(asked, signal);
    } catch (error) {
      if (signal.aborted) return;
      failed = `The words cannot be shown: ${error.message}.`;
      this.again = performance.now() + RETRY_MS;
    }
    if (signal.aborted || this.ended) return;
    if (this.press) {  // a chip is held by what is shown now: ask again when it is let go
      this.asked = null;
      return;
    }
    Object.assign(this, { reading, problem: failed });
    this.#paint();
  }

  // The text ------------------------------------------------------------------------------------------

  /** A text from the page: a loaded workflow, undo, a paste. */
  receive(value) {
    const text = typeof value === "string" ? value : value == null ? "" : JSON.stringify(value);
    if (text === this.text) return;
    this.text = text;
    this.look();
    this.#paint();
  }

  /** A text from the chips or the field. */
  write(text, whole = true) {
    if (text === this.text) return;
    this.text = text;
    for (const widget of new Set([this.widget, this.#holder(this.name)])) {
      if (!widget) continue;
      widget.value = text;
      widget.callback?.(text);
    }
    if (whole) remember();
    this.look();
    this.#paint();
  }

  /** Whether chips may be changed: not while a text that would be lost cannot be read. */
  get #open() {
    return Boolean(this.reading?.said) && (!this.reading.problem || this.#lost);
  }

  get #lost() {
    return LISTS.some((list) => this.reading?.lost[list].length);
  }

  /** Say something about words: at once on the screen, then in the text; the server reads that again. */
  #say(chips, changes) {
    if (!this.#open || !chips.length) return;
    const said = changed(this.reading.said, chips, changes);
    const known = Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined));
    for (const chip of chips) Object.assign(this.reading[chip.list].chips[chip.at], known);
    this.reading.said = said;
    // What is said about words that are gone stays until the user drops it: the words may come back.
    const { lost } = this.reading, whole = LISTS.map((list) => [list, [...said[list], ...lost[list]]]);
    this.write(writeWords({ ...said, ...Object.fromEntries(whole) }));
  }

  /** The chip and those of the other prompt that share its map. */
  #together(chip) {
    const other = LISTS.find((list) => list !== chip.list);
    return [chip, ...chipsOf(this.reading, other).filter(({ at }) => chip.partners.includes(at))];
  }

  #flag(chip, name) {
    const on = !chip[name];
    this.#say(this.#together(chip), { blend: name === "blend" && on, away: name === "away" && on });
  }

  #clear(chip) {
    this.#say(this.#together(chip), { blend: false, away: false });
    if (chip.list === "edited") this.#say([chip], { weight: 1, steps: undefined, state: undefined, from: undefined });
  }

  #weigh(chip, weight) {
    if (chip.list === "edited" && Number.isFinite(weight)) this.#say([chip], { weight: limited(weight) });
  }

  // Mouse and keys ------------------------------------------------------------------------------------

  #chipAt(target) {
    const found = target.closest?.(".framepainter-chip");
    return found ? this.#chip(found.dataset.list, Number(found.dataset.at)) : null;
  }

  #chip(list, at) {
    return this.reading ? chipsOf(this.reading, list).find((chip) => chip.at === at) ?? null : null;
  }

  #pressed(event) {
    const chip = event.button === 0 && this.#open ? this.#chipAt(event.target) : null;
    this.dragged = false;
    if (!chip) return;
    const made = event.target.closest(".framepainter-chip");
    made.setPointerCapture(event.pointerId);
    this.press = { chip, made, x: event.clientX, weight: chip.weight };
  }

  #moved(event) {
    const { press } = this;
    if (!press || press.chip.list !== "edited") return;
    const moved = event.clientX - press.x;
    if (!this.dragged && Math.abs(moved) < DRAG_FROM) return;
    this.dragged = true;
    press.weight = draggedWeight(press.chip.weight, moved, event.shiftKey);
    press.made.dataset.dragged = "";
    showWeight(press.made, press.weight);
  }

  #released() {
    const { press } = this;
    this.press = null;
    if (press && this.dragged) this.#weigh(press.chip, press.weight);
    if (press && this.dragged) this.#paint();
  }

  #dropped() {
    this.press = null;
    this.#paint();
  }

  #clicked(event) {
    const chip = this.#chipAt(event.target);
    if (!chip || this.dragged) return;
    this.picked = { list: chip.list, at: chip.at };
    if (event.detail > 1) this.#clear(chip);
    else this.#flag(chip, event.shiftKey ? "away" : "blend");
    this.#paint();
  }

  #focused(event) {
    const chip = this.#chipAt(event.target);
    if (!chip || (this.picked?.list === chip.list && this.picked.at === chip.at)) return;
    this.picked = { list: chip.list, at: chip.at };
    this.#paintDetail();
  }

  #key(event) {
    const chip = this.#chipAt(event.target);
    if (!chip || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? LARGE_STEP : STEP, round = (weight) => Math.round(weight * 100) / 100;
    const keys = {
      ArrowLeft: () => this.#go(chip, -1), ArrowRight: () => this.#go(chip, 1),
      Home: () => this.#go(chip, -Infinity), End: () => this.#go(chip, Infinity),
      ArrowUp: () => this.#weigh(chip, round(chip.weight + step)), ArrowDown: () => this.#weigh(chip, round(chip.weight - step)),
      Enter: () => this.#flag(chip, event.shiftKey ? "away" : "blend"), " ": () => this.#flag(chip, event.shiftKey ? "away" : "blend"),
      Delete: () => this.#clear(chip), Backspace: () => this.#clear(chip),
      Escape: () => this.press && this.#dropped(),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    event.stopPropagation();  // the page would delete the node
    keys[event.key]();
  }

  #go(chip, by) {
    const row = chipsOf(this.reading, chip.list), place = row.findIndex(({ at }) => at === chip.at);
    const next = row[Math.max(0, Math.min(row.length - 1, place + by))];
    this.rows.querySelector(`[data-list=${next.list}][data-at="${next.at}"]`)?.focus();
  }

  #toggle() {
    this.typed = !this.typed;
    this.#paint();
    if (this.typed) this.field.focus();
  }

  // What is seen --------------------------------------------------------------------------------------

  #paint() {
    if (this.ended || this.press) return;
    const { reading } = this, typed = this.typed || (!reading && Boolean(this.problem)), linked = this.#linked(this.name);
    this.rows.hidden = typed;
    this.field.hidden = !typed || Boolean(linked);
    this.legend.hidden = typed;
    if (this.field.value !== this.text) this.field.value = this.text;
    updateChildren(this.rows, reading ? LISTS.map((list) => wordRow(reading, list, this.picked, this.#open)) : []);
    this.switch.firstChild.textContent = typed ? "As chips" : "As text";
    this.switch.hidden = !reading;
    this.reset.disabled = !this.text || Boolean(linked);
    explain(this.legend, reading);
    this.#paintStatus();
    this.#paintDetail();
  }

  #paintStatus() {
    const { reading } = this, text = this.problem || (reading?.problem ? sentence(reading.problem) : "");
    this.status.hidden = !text;
    this.status.dataset.level = text ? "warn" : "";
    this.status.replaceChildren(element("span", { text }));
    if (this.#lost) {
      this.status.append(button({ text: "Drop", label: "Remove the choices for words that are gone", id: "drop",
                                  run: () => this.write(writeWords(reading.said)) }));
    }
  }

  /** What the picked word is, and fields to change it without the mouse. */
  #paintDetail() {
    const chip = this.picked && !this.typed ? this.#chip(this.picked.list, this.picked.at) : null;
    if (this.detail.contains(document.activeElement) && this.shown === chip?.word) return;  // the user is typing here
    this.shown = chip?.word;
    if (!chip || chip.list !== "edited" || !this.#open) {
      this.detail.replaceChildren(element("span", { text: this.hint(chip) }));
      return;
    }
    this.detail.replaceChildren(stateField(chip, this.reading, (value) => this.#choose(chip, value)),
                                weightField(chip, STEP, (weight) => this.#weigh(chip, weight)));
  }

  hint(chip) {
    if (chip) return describe(chip, this.reading);
    return this.field.hidden ? "Click: edit acts here. Drag: weight." : "One entry per line.";
  }

  #choose(chip, value) {
    const from = /^from (\d+)$/.exec(value);
    if (from) this.#say([chip], { state: "swapped", from: [Number(from[1])] });
    else if (value === "automatic") this.#say([chip], { state: undefined, from: undefined });
    else if (value !== "from more") this.#say([chip], { state: value, from: undefined });
  }
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

async function read(asked, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi(PATH, { method: "POST", headers, body: JSON.stringify(asked), signal });
  const found = await answer.json().catch(() => null);
  if (!answer.ok || !found) throw new Error(found?.error ?? `the server answers ${answer.status}`);
  return found;
}

/** A widget constructor for getCustomWidgets. */
export function wordsWidget(node, name, spec) {
  const { widget } = new WordsWidget(node, name, spec?.[1]?.default ?? "");
  return { widget, minWidth: MIN_WIDTH, minHeight: MIN_HEIGHT };
}
