import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { ask } from "./editor/ask.js";
import { button, element } from "./editor/dom.js";
import { Editor } from "./editor/shell.js";
import { chooseFrame, fetchStrip } from "./footage.js";
import { inputLink } from "./graph.js";
import { NodeWidget, remember, ROOT } from "./node_widget.js";
import { connectFile, fetchPicture, otherOrigin, sourceOf } from "./picture.js";
import { paintPreview, statusOf } from "./preview.js";
import { KINDS } from "./state.js";
import { addStyle } from "./style.js";
import { makePicture } from "./upstream.js";

const INPUT = "picture";
const MIN_WIDTH = 260, MIN_HEIGHT = 230;
/** How often a node looks whether its picture has become another one: neither runs nor other nodes' widgets tell. */
const LOOK_MS = 700;
/** The frontend's own root element: unlike a node's element it is never hidden. */
const PAGE = "#vue-app";
const OPEN = { sketch: ["brush", "Draw"], drag: ["arrow", "Drag points"], coarse: ["lasso", "Move parts"] };

/** An editor's widget on its node: a thumbnail and buttons; its value is the editor's text. */
class EditorWidget extends NodeWidget {
  /**
   * @param {object} node
   * @param {string} name of the input
   * @param {import("./state.js").Kind} kind
   * @param {string} text
   */
  constructor(node, name, kind, text) {
    super(node, element("div", { class: ROOT, "data-kind": kind }), LOOK_MS);
    Object.assign(this, { kind, text, bitmap: null, key: null, own: null, editor: null, problem: "", upstream: null, making: null, footage: null });
    this.#build();
    this.widget = node.addDOMWidget(name, `framepainter_${kind}`, this.root, {
      getValue: () => this.text,
      setValue: (value) => this.receive(value),
      getMinHeight: () => MIN_HEIGHT,
      hideOnZoom: false,
      socketless: true,
    });
    this.widget.serialize = true;
    this.observer = new ResizeObserver(() => this.paint());
    this.#listen();
    this.follow();
  }

  #build() {
    const [name, label] = OPEN[this.kind];
    this.canvas = element("canvas");
    this.hint = element("div", { class: "framepainter-empty" });
    this.hintText = element("span");
    this.getButton = button({ icon: "picture", text: "Get picture", id: "get", run: () => this.getPicture() });
    this.hint.append(this.hintText, this.getButton);
    this.thumb = element("div", { class: "framepainter-thumb", title: "Double click to open the editor", on: { dblclick: (event) => {
      event.stopPropagation();
      this.open();
    } } }, this.canvas, this.hint);
    this.status = element("div", { class: "framepainter-status", role: "status" });
    const row = element("div", { class: "framepainter-row" },
      button({ icon: name, text: label, class: "framepainter-main", id: "open", run: () => this.open() }),
      button({ icon: "picture", text: "Picture", label: "Choose picture", id: "choose", run: () => this.choose() }),
      button({ icon: "trash", label: "Clear", id: "clear", run: () => this.clear() }));
    // A press on a button is not the start of moving the node.
    for (const type of ["pointerdown", "mousedown", "dblclick"]) row.addEventListener(type, (event) => event.stopPropagation());
    this.root.append(this.thumb, this.status, row);
    addStyle(this.root);
  }

  // The node ------------------------------------------------------------------------------------------

  #listen() {
    this.chain("onExecuted", (output) => {
      if (!output?.framepainter_picture) return;
      this.own = output;
      this.look();
    });
    this.chain("onConnectionsChange", () => {
      if (!app.configuringGraph) this.own = {};  // what was reported was another picture
      queueMicrotask(() => this.look());
    });
  }

  /** Before a run can fail our nodes say which picture they got; ids of nodes in subgraphs come after those of the subgraph. */
  reported = ({ detail }) => {
    if (String(detail?.node).split(":").at(-1) !== String(this.node.id)) return;
    this.own = detail;
    this.look();
  };

  begun() {
    this.key = null;
    this.observer.observe(this.thumb);
    api.addEventListener("framepainter.picture", this.reported);
  }

  gone() {
    this.observer.disconnect();
    api.removeEventListener("framepainter.picture", this.reported);
    this.loading?.abort();
    this.making?.abort();
    this.editor?.close();
    this.bitmap?.close();
    this.bitmap = null;
  }

  // The picture ---------------------------------------------------------------------------------------

  /** Load the connected picture, if it is another one than before. */
  async look() {
    if (this.ended || document.hidden || !this.node.graph) return;
    const source = sourceOf(this.node, INPUT, this.own), upstream = otherOrigin(this.node, INPUT);
    const key = source?.key ?? (upstream === null ? "" : `made by ${upstream}`);
    if (key === this.key) return;
    this.key = key;
    this.loading?.abort();
    this.loading = new AbortController();
    const { signal } = this.loading;
    let bitmap = null;
    this.problem = "";
    this.upstream = source ? null : upstream;
    this.footage = source?.footage ?? null;
    this.#tellStrip();
    try {
      if (source) bitmap = await fetchPicture(source, signal);
    } catch (error) {
      if (signal.aborted) return;
      this.problem = error.message;
    }
    if (signal.aborted || this.ended) return bitmap?.close();
    const old = this.bitmap;
    this.bitmap = bitmap;
    this.#tellEditor();
    old?.close();
    this.paint();
  }

  #tellStrip() {
    const { footage } = this, free = footage?.free && (footage.pick || inputLink(this.node, this.#slot)?.origin_id >= 0);
    this.editor?.setFootage(free ? { key: JSON.stringify(footage.query), index: footage.index,
                                     load: (signal) => fetchStrip(footage, signal) } : null);
  }

  get #slot() {
    return this.node.inputs?.findIndex((input) => input.name === INPUT) ?? -1;
  }

  chooseFrame(index) {
    chooseFrame(this.node, INPUT, this.footage, index);
    remember();
    this.look();
  }

  #tellEditor(waiting = false) {
    this.editor?.setPicture(this.bitmap, { waiting, upstream: this.upstream, problem: this.problem });
  }

  /** Run what lies before this node, and no more. */
  async getPicture() {
    this.making?.abort();
    const { signal } = this.making = new AbortController();
    this.problem = "";
    this.#tellEditor(true);
    this.paint();
    try {
      this.own = { framepainter_picture: [await makePicture(this.node, INPUT, signal)] };
    } catch (error) {
      if (signal.aborted) return;
      this.problem = error.message;
    }
    this.making = null;
    if (this.problem) {
      this.#tellEditor();
      this.paint();
    } else await this.look();
  }

  /** Connect a file; other nodes are replaced only if that is wanted. @returns {Promise<boolean>} whether it was done */
  async connect(input, file) {
    const other = otherOrigin(this.node, input);
    if (other && !await ask(this.place, `"${input}" comes from "${other}". Connect a Load Image node with ${file.name} in its place?`,
                            "Replace")) return false;
    await connectFile(this.node, input, file);
    remember();
    await this.look();
    return true;
  }

  get place() {
    return this.root.closest(PAGE) ?? this.root;
  }

  choose() {
    const field = element("input", { type: "file", accept: "image/*" });
    field.addEventListener("change", async () => {
      try {
        await this.connect(INPUT, field.files[0]);
      } catch (error) {
        this.problem = error.message;
        this.paint();
      }
    });
    field.click();
  }

  // The text ------------------------------------------------------------------------------------------

  /** A text from the page: a loaded workflow, undo, a paste. */
  receive(value) {
    const text = typeof value === "string" ? value : value == null ? KINDS[this.kind].empty : JSON.stringify(value);
    if (text === this.text) return;
    this.text = text;
    this.editor?.receive(text);
    this.paint();
  }

  /** A text from the editor. */
  write(text) {
    this.text = text;
    this.widget.value = text;
    this.widget.callback?.(text);
    this.paint();
    remember();
  }

  clear() {
    if (this.text !== KINDS[this.kind].empty) this.write(KINDS[this.kind].empty);
  }

  // What is seen --------------------------------------------------------------------------------------

  paint() {
    if (this.ended || this.editor) return;  // the editor covers it
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!this.ended) this.#paint();
    });
  }

  #paint() {
    const density = Math.min(2, window.devicePixelRatio || 1), { clientWidth, clientHeight } = this.thumb;
    const { text, warn, broken } = statusOf(this.kind, this.text, this.bitmap);
    this.status.replaceChildren(element("span", { text: this.problem || text }));
    this.status.dataset.level = warn || this.problem ? "warn" : "";
    if (broken) {
      this.status.append(button({ icon: "copy", label: "Copy the text", id: "copy-text", run: () => navigator.clipboard?.writeText(this.text) }));
    }
    if (!clientWidth || !clientHeight) return;
    this.canvas.width = Math.round(clientWidth * density);
    this.canvas.height = Math.round(clientHeight * density);
    const drawn = paintPreview(this.canvas, this.kind, this.text, this.bitmap, density);
    const unknown = !this.bitmap && Boolean(this.upstream);
    this.getButton.hidden = !unknown || Boolean(this.making);
    this.hintText.textContent = this.making ? "Running the nodes before this one …"
      : unknown ? `"${this.upstream}" makes the picture in a run.`
      : drawn ? "" : "Connect a picture, choose one, or draw on a blank canvas.";
  }

  open() {
    if (this.editor || this.ended) return;
    this.editor = new Editor({
      kind: this.kind, text: this.text, place: this.place,
      write: (text) => this.write(text),
      connect: (input, file) => this.connect(input, file),
      getPicture: () => this.getPicture(),
      run: () => app.extensionManager.command.execute("Comfy.QueuePrompt"),
      chooseFrame: (index) => this.chooseFrame(index),
      closed: () => {
        this.editor = null;
        this.paint();
      },
    });
    this.#tellEditor(!this.bitmap && Boolean(this.key) && !this.upstream && !this.problem);
    this.#tellStrip();
    this.look();
  }
}

/**
 * A widget constructor for getCustomWidgets.
 * @param {import("./state.js").Kind} kind
 */
export function editorWidget(kind) {
  return (node, name, spec) => {
    const { widget } = new EditorWidget(node, name, kind, spec?.[1]?.default ?? KINDS[kind].empty);
    return { widget, minWidth: MIN_WIDTH, minHeight: MIN_HEIGHT };
  };
}
