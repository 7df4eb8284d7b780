import { KINDS, readState } from "../state.js";
import { addStyle } from "../style.js";
import { createCoarse } from "./coarse.js";
import { Drawing } from "./document.js";
import { button, element, group, newCanvas } from "./dom.js";
import { createDrag } from "./drag.js";
import { FilmStrip } from "./film_strip.js";
import { listen } from "./gestures.js";
import { helpList } from "./help.js";
import { onKey } from "./keys.js";
import { createSketch } from "./sketch.js";
import { View } from "./view.js";

const TOOLS = { sketch: createSketch, drag: createDrag, coarse: createCoarse };
const BLANK = { width: 512, height: 512 };
const TOAST_MS = 4000;

/**
 * What an editor needs from the node it belongs to.
 * @typedef {object} Host
 * @property {import("../state.js").Kind} kind
 * @property {string} text
 * @property {Element} place holds the dialog; stays on show when the node does not
 * @property {(text: string) => void} write puts a text into the node
 * @property {(input: string, file: File) => Promise<boolean>} connect a picture file to an input of the node; false: it was not wanted
 * @property {() => void} getPicture runs the nodes before this one, to have their picture
 * @property {() => void} run runs the workflow
 * @property {(index: number) => void} chooseFrame edits another frame of the video
 * @property {() => void} closed called once, when the editor has gone
 */

/** A full-window editor: dialog, toolbar, stage, keys, undo. What is drawn and how is up to a tool of one kind. */
export class Editor {
  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.kind = host.kind;
    this.ending = new AbortController();
    this.drawing = new Drawing(host.kind, host.text, host.write);
    this.#build();
    this.view = new View(this.stage);
    this.tool = TOOLS[host.kind](this);
    this.#fillToolbar();
    const { signal } = this.ending;
    this.gestures = listen(this.stage, this.view, {
      down: (point, event) => this.#down(point, event),
      move: (...all) => this.#move(...all),
      up: (...all) => this.#finish(() => this.tool.up(...all)),
      cancel: () => this.#finish(() => this.tool.cancel()),
      hover: (point, event) => this.#hover(point, event),
      changed: () => this.render(),
    }, signal);
    for (const type of ["keydown", "keyup", "keypress"]) {
      window.addEventListener(type, (event) => onKey(this, event), { capture: true, signal });
    }
    this.observer = new ResizeObserver(() => this.#resized());
    addStyle(this.dialog);
    host.place.append(this.dialog);
    this.dialog.showModal();
    this.observer.observe(this.stage);
    this.setPicture(null, { waiting: true });
    this.focus();
  }

  // Elements ------------------------------------------------------------------------------------------

  #build() {
    const { title } = KINDS[this.kind], { signal } = this.ending;
    this.about = element("span", { class: "framepainter-about" });
    this.bar = element("div", { class: "framepainter-bar", role: "toolbar", "aria-label": "Tools" });
    this.banner = element("div", { class: "framepainter-banner", role: "alert", hidden: true });
    // Keys go to a text field: older pages undo the graph on Ctrl+Z unless one has the focus.
    this.keys = element("input", { class: "framepainter-keys", readonly: true, "aria-label": `${title}: drawing area. Press ? for its keys.` });
    this.picture = newCanvas(1, 1);
    this.marks = newCanvas(1, 1);
    this.picture.canvas.className = "framepainter-picture";
    this.stage = element("div", { class: "framepainter-stage" }, this.keys, this.picture.canvas, this.marks.canvas);
    this.toast = element("div", { class: "framepainter-toast", role: "status", "aria-live": "polite", hidden: true });
    this.help = element("div", { class: "framepainter-help", role: "region", "aria-label": "Keyboard shortcuts", hidden: true });
    this.body = element("div", { class: "framepainter-body" }, this.stage, this.help, this.toast);
    this.strip = new FilmStrip((index) => this.host.chooseFrame(index));
    this.tip = element("span", { class: "framepainter-tip" });
    this.where = element("output", { "aria-label": "Pointer position" });
    this.scale = element("output", { "aria-label": "Zoom" });
    this.dialog = element("dialog", { class: "framepainter-dialog", role: "dialog", "aria-modal": "true", "aria-label": title,
                                      "data-kind": this.kind },
      element("div", { class: "framepainter-head" }, element("h2", { text: title }), this.about, element("span", { class: "framepainter-space" }),
              button({ icon: "help", label: "Keyboard shortcuts", key: "?", run: () => this.toggleHelp(), id: "help" }),
              button({ icon: "play", text: "Run", label: "Done, and run the workflow", key: "Ctrl+Shift+Enter", run: () => this.run(), id: "run" }),
              button({ icon: "check", text: "Done", key: "Esc", run: () => this.close(), class: "framepainter-main", id: "done" })),
      this.bar, this.banner, this.body, this.strip.root,
      element("div", { class: "framepainter-foot" }, this.tip, element("span", { class: "framepainter-space" }), this.where, this.scale));
    const own = (type, listener) => this.dialog.addEventListener(type, listener, { signal });
    // What happens in here is none of the page's business: it would paste nodes, zoom the graph or open dropped files.
    for (const type of ["pointerdown", "pointerup", "mousedown", "mouseup", "click", "dblclick", "wheel", "contextmenu", "copy", "cut",
                        "paste", "dragover", "drop"]) {
      own(type, (event) => event.stopPropagation());
    }
    own("dragover", (event) => event.preventDefault());
    own("drop", (event) => {
      event.preventDefault();
      const file = event.dataTransfer?.files?.[0];
      if (file) this.load(file);
    });
    own("cancel", (event) => event.preventDefault());
    // After a click the keys should work; whoever goes by keyboard stays on the button.
    own("click", (event) => event.detail > 0 && event.target.closest?.("button") && this.focus());
  }

  #fillToolbar() {
    const act = (id, icon, label, key, run) => button({ id, icon, label, key, run });
    this.undoButton = act("undo", "undo", "Undo", "Ctrl+Z", () => this.travel(-1));
    this.redoButton = act("redo", "redo", "Redo", "Ctrl+Shift+Z", () => this.travel(1));
    this.clearButton = act("clear", "trash", "Clear all", "", () => this.clear());
    this.bar.append(...this.tool.controls,
      group("History", this.undoButton, this.redoButton, this.clearButton),
      group("File", act("load", "load", "Load from file", "", () => this.askFile()),
            act("save", "save", "Save to file", "", () => this.save())),
      group("View", act("zoom-out", "minus", "Zoom out", "-", () => this.zoom(1 / 1.25)),
            act("zoom-in", "plus", "Zoom in", "+", () => this.zoom(1.25)), act("fit", "fit", "Fit to window", "0", () => this.fit())));
    if (this.tool.panel) this.body.insertBefore(this.tool.panel, this.help);
    this.help.append(...helpList(this.tool.keys));
  }

  focus() {
    this.keys.focus({ preventScroll: true });
  }

  /** Tell the user something. */
  say(text) {
    clearTimeout(this.toastTimer);
    this.toast.textContent = text;
    this.toast.hidden = false;
    this.toastTimer = setTimeout(() => (this.toast.hidden = true), TOAST_MS);
  }

  toggleHelp(shown = this.help.hidden) {
    this.help.hidden = !shown;
  }

  // The ground ----------------------------------------------------------------------------------------

  /**
   * Draw on this picture from now on.
   * @param {ImageBitmap | null} bitmap null: a blank canvas
   * @param {{waiting?: boolean, upstream?: string | null, problem?: string}} [about] waiting: one will come.  upstream: the node
   *   that makes it in a run.  problem: why there is none.
   */
  setPicture(bitmap, { waiting = false, upstream = null, problem = "" } = {}) {
    this.gestures.cancel();
    this.bitmap = bitmap;
    this.waiting = waiting;
    this.missing = bitmap ? null : { upstream, problem };
    const size = bitmap ?? this.drawing.size ?? BLANK;
    this.ground = newCanvas(size.width, size.height, { willReadFrequently: true });
    if (bitmap) this.ground.context.drawImage(bitmap, 0, 0);
    else {
      this.ground.context.fillStyle = "#808080";
      this.ground.context.fillRect(0, 0, size.width, size.height);
    }
    this.drawing.setGround(size);
    const other = size.width !== this.view.size.width || size.height !== this.view.size.height;
    this.view.size = { width: size.width, height: size.height };
    if (other || this.view.fitted) this.view.fit();
    this.tool.grounded();
    this.refresh();
  }

  /**
   * The video that the picture is a frame of.
   * @param {{key: string, index: number, load: (signal: AbortSignal) => Promise<object>} | null} footage null: it is of none, or
   *   no other frame can be chosen
   */
  setFootage(footage) {
    if (footage) this.strip.show(footage.key, footage.index, () => footage.load(this.ending.signal));
    else this.strip.hide();
  }

  // Changes -------------------------------------------------------------------------------------------

  /** Show what the drawing holds now. */
  refresh() {
    this.tool.changed();
    this.undoButton.disabled = !this.drawing.canUndo;
    this.redoButton.disabled = !this.drawing.canRedo;
    const { width, height } = this.drawing.ground, from = this.drawing.size;
    const scaled = this.drawing.relation === "scaled" ? `, drawn on ${from.width} × ${from.height} and shown scaled` : "";
    const size = this.bitmap ? `${width} × ${height} pixels${scaled}` : `blank canvas, ${width} × ${height}`;
    this.about.textContent = `${size} · ${this.drawing.summary}`;
    this.#showBanner();
    this.render();
  }

  /** Apply a change to the drawing and show it. @param {() => void} change */
  change(change) {
    change();
    this.refresh();
  }

  travel(by) {
    this.gestures.cancel();
    if (this.drawing.travel(by)) this.refresh();
    else this.say(by < 0 ? "Nothing to undo" : "Nothing to redo");
  }

  clear() {
    this.gestures.cancel();
    this.change(() => this.drawing.clear());
  }

  /** The node got another text from elsewhere. */
  receive(text) {
    if (text === this.drawing.text) return;
    this.gestures.cancel();
    this.change(() => this.drawing.show(text));
  }

  /** Why nothing can be drawn now; empty if it can. */
  get #barred() {
    if (this.drawing.locked) return "Choose first whether to stretch the drawing or to start over";
    if (this.waiting) return "The picture is on its way";
    return this.missing && (this.missing.upstream || this.missing.problem) && !this.blank
      ? "There is no picture yet. Get it first, or choose to draw on a blank canvas" : "";
  }

  #showBanner() {
    const { drawing } = this, { width, height } = drawing.ground, startOver = () => this.clear();
    const again = button({ text: "Start over", run: startOver, id: "start-over" });
    const choose = button({ text: "Choose picture", icon: "picture", id: "choose", run: () => this.askFile("picture") });
    const show = (text, ...buttons) => {
      this.banner.replaceChildren(element("p", { text }), ...buttons);
      this.banner.hidden = false;
    };
    this.banner.hidden = true;
    if (drawing.problem) {
      const copy = button({ text: "Copy the text", icon: "copy", id: "copy-text", run: () => this.#copyText() });
      show(`Cannot be shown: ${drawing.problem}. The text stays unchanged until you draw or start over.`, copy, again);
    } else if (drawing.locked) {
      const stretch = button({ text: "Stretch", id: "stretch", run: () => this.change(() => drawing.stretch()) });
      show(`Drawn on a picture of ${drawing.size.width} × ${drawing.size.height}, but this one is ${width} × ${height}: the aspect `
           + "ratios differ. Stretch the drawing to fit, or start over. You can also connect the picture that it was drawn on again.",
           stretch, again);
    } else if (this.waiting) {
      show("The picture is on its way.");
    } else if (this.missing?.upstream || this.missing?.problem) {
      const { upstream, problem } = this.missing;
      const get = button({ text: "Get picture", icon: "picture", class: "framepainter-main", id: "get", run: () => this.host.getPicture() });
      const blank = button({ text: "Draw on a blank canvas", id: "blank", run: () => this.#drawBlank() });
      show((problem ? `There is no picture: ${problem} ` : `"${upstream}" makes the picture in a run. Get picture runs the nodes before `
           + "this one and no others. ") + `This is a blank canvas of ${width} × ${height}.`,
           ...(upstream ? [get] : []), ...(this.blank ? [] : [blank]));
    } else if (!this.bitmap) {
      show(`No picture is connected: this is a blank canvas of ${width} × ${height}. Connect a picture to the node or choose one.`, choose);
    } else if (this.tool.warning?.()) {
      show(this.tool.warning());
    }
  }

  #drawBlank() {
    this.blank = true;
    this.refresh();
  }

  async #copyText() {
    try {
      await navigator.clipboard.writeText(this.drawing.text);
      this.say("Copied");
    } catch {
      this.#download(this.drawing.text, `${this.kind}.txt`);
    }
  }

  // Files ---------------------------------------------------------------------------------------------

  /** @param {string} [input] where a picture goes; without it a drawing is asked for */
  askFile(input) {
    const accept = input || this.kind === "sketch" ? "image/*" : "";
    const field = element("input", { type: "file", accept: input ? accept : [".json", accept].filter(Boolean).join(","), hidden: true });
    field.addEventListener("change", () => {
      if (field.files[0]) this.load(field.files[0], input);
      field.remove();
    });
    field.addEventListener("cancel", () => field.remove());
    this.dialog.append(field);
    field.click();
  }

  /** A file of a saved drawing; a picture goes to an input of the node. */
  async load(file, input = this.kind === "sketch" ? "sketch" : "picture") {
    try {
      if (file.type.startsWith("image/")) {
        if (!await this.host.connect(input, file)) return;
        this.say(input === "sketch" ? `${file.name} is connected to "sketch" and is used together with the strokes`
                                    : `${file.name} is connected to "picture"`);
        return;
      }
      const text = await file.text(), read = readState(this.kind, text);
      if (read.problem || !read.items.length) throw new Error(read.problem ?? `it holds no ${KINDS[this.kind].many}`);
      this.change(() => this.drawing.load(text));
    } catch (error) {
      this.say(`${file.name} was not loaded: ${error.message}`);
    }
  }

  save() {
    if (!this.drawing.items.length) this.say("Nothing is drawn yet");
    else this.#download(this.drawing.text, `framepainter_${this.kind}.json`);
  }

  #download(text, name) {
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    element("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  // The stage -----------------------------------------------------------------------------------------

  #down(point, event) {
    this.focus();
    this.toggleHelp(false);
    this.started = false;
    if (this.#barred) this.say(this.#barred);
    else this.started = this.tool.down(point, event) !== false;
  }

  #move(point, event, points) {
    this.#track(event.pointerType === "touch" ? null : point);
    if (this.started) this.tool.move(point, event, points);
  }

  #finish(end) {
    if (this.started) end();
    this.started = false;
    this.render();
  }

  #track(point) {
    this.pointer = point;
    this.where.textContent = point ? `${point.x.toFixed(1)}, ${point.y.toFixed(1)}` : "";
  }

  #hover(point, event) {
    this.#track(event.pointerType === "touch" ? null : point);
    this.tool.hover?.(point, event);
  }

  zoom(factor) {
    this.view.zoomBy(factor);
    this.render();
  }

  fit() {
    this.view.fit();
    this.render();
  }

  actual() {
    this.view.actual();
    this.render();
  }

  #resized() {
    const density = window.devicePixelRatio || 1, { clientWidth, clientHeight } = this.stage;
    for (const { canvas } of [this.picture, this.marks]) {
      canvas.width = Math.max(1, Math.round(clientWidth * density));
      canvas.height = Math.max(1, Math.round(clientHeight * density));
    }
    if (this.view.fitted) this.view.fit();
    this.stale = true;
    this.#draw();
  }

  /** Draw the stage before the next frame. */
  render() {
    this.stale = true;
    this.renderMarks();
  }

  /** The same of what lies above the picture, where that has not changed. */
  renderMarks() {
    this.frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const density = window.devicePixelRatio || 1, { view } = this, { context, canvas } = this.picture, marks = this.marks.context;
    if (this.stale) {
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.setTransform(density * view.zoom, 0, 0, density * view.zoom, density * view.x, density * view.y);
      context.imageSmoothingEnabled = view.zoom * density < 2.5;
      context.imageSmoothingQuality = "medium";
      this.tool.paint(context);
      this.stale = false;
    }
    marks.setTransform(density, 0, 0, density, 0, 0);
    marks.clearRect(0, 0, canvas.width, canvas.height);
    marks.strokeStyle = "#8886";
    marks.strokeRect(view.x - 0.5, view.y - 0.5, view.size.width * view.zoom + 1, view.size.height * view.zoom + 1);
    this.tool.marks(marks, view);
    this.scale.textContent = `${Math.round(view.zoom * 1000) / 10} %`;
    this.tip.textContent = this.tool.tip();
  }

  /** Close, and run the workflow as the page's own button does. */
  run() {
    this.close();
    this.host.run();
  }

  /** Close; all changes are in the node already. */
  close() {
    if (this.ending.signal.aborted) return;
    this.gestures.cancel();
    this.ending.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.toastTimer);
    this.dialog.close();
    this.dialog.remove();
    this.host.closed();
  }
}
