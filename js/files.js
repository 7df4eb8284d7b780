import { api } from "../../scripts/api.js";
import { button, element } from "./editor/dom.js";
import { addStyle } from "./style.js";

/** Load Picture or Example and Load Video or Example: a look at the chosen file, and a button to upload one. */

/** Node type -> name of its list, kind of its files. */
export const FILES = { FramePainterPicture: ["image", "image"], FramePainterVideo: ["file", "video"] };
const MARK = / \[example\]$/;
const MIN_HEIGHT = 200;
/** ComfyUI serves a pack's workflow folder under the name of the pack's folder. */
const PACK = new URL(".", import.meta.url).pathname.split("/").filter(Boolean).at(-1);

/** "sub/name.png [input]" */
export function annotated(value) {
  const [, path, type] = /^(.*?)(?:\s*\[(input|output|temp)\])?$/.exec(value);
  const cut = path.lastIndexOf("/");
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(0, cut)), type: type ?? "input" };
}

/** Address of a file as the page can show it, before any run. */
export function addressOf(value) {
  if (MARK.test(value)) return api.apiURL(`/workflow_templates/${PACK}/inputs/${encodeURIComponent(value.replace(MARK, ""))}`);
  return api.apiURL(`/view?${new URLSearchParams(annotated(value))}`);
}

/**
 * Upload a file into the input folder.
 * @param {File} file
 * @returns {Promise<string>} its name for the list
 */
export async function upload(file) {
  const body = new FormData();
  body.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(`the file could not be uploaded (${answer.status})`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

/** Set a list of files to a name that it may not know yet. */
export function choose(node, widget, name) {
  const values = widget.options?.values;
  if (Array.isArray(values) && !values.includes(name)) values.push(name);
  widget.value = name;
  widget.callback?.(name);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** The look and the button, on a node that has just been made. */
export function addFileView(node) {
  const [input, kind] = FILES[node.comfyClass] ?? [];
  const list = node.widgets?.find((w) => w.name === input);
  if (!list) return;
  const show = element(kind === "video" ? "video" : "img", kind === "video" ? { muted: true, loop: true, autoplay: true, playsinline: true } : { alt: "" });
  show.muted = true;
  show.draggable = false;
  const note = element("div", { class: "framepainter-empty" });
  const take = async (file) => {
    try {
      choose(node, list, await upload(file));
    } catch (error) {
      note.textContent = error.message;
    }
  };
  const ask = () => {
    const field = element("input", { type: "file", accept: `${kind}/*` });
    field.addEventListener("change", () => field.files[0] && take(field.files[0]));
    field.click();
  };
  const row = element("div", { class: "framepainter-row" },
    button({ icon: "load", text: kind === "video" ? "Upload a video" : "Upload a picture", class: "framepainter-main", id: "upload", run: ask }));
  for (const type of ["pointerdown", "mousedown", "dblclick"]) row.addEventListener(type, (event) => event.stopPropagation());
  const root = element("div", { class: "framepainter-widget framepainter-file", "data-kind": "file" },
    element("div", { class: "framepainter-thumb" }, show, note), row);
  addStyle(root);

  let shown = null;
  const look = () => {
    if (list.value === shown) return;
    shown = list.value;
    note.textContent = "";
    if (typeof shown === "string" && shown) show.src = addressOf(shown);
    else show.removeAttribute("src");
  };
  show.addEventListener("error", () => { note.textContent = "This file cannot be shown here."; });
  const before = list.callback;
  list.callback = function (...all) {
    const result = before?.apply(this, all);
    look();
    return result;
  };
  const configure = node.onConfigure;
  node.onConfigure = function (...all) {
    const result = configure?.apply(this, all);
    look();
    return result;
  };
  node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  node.onDragDrop = (event) => {
    const file = [...(event.dataTransfer?.files ?? [])].find((f) => f.type.startsWith(`${kind}/`));
    if (file) take(file);
    return Boolean(file);
  };
  const widget = node.addDOMWidget("view", "framepainter_file", root, {
    getValue: () => "", setValue: () => {}, getMinHeight: () => MIN_HEIGHT, hideOnZoom: false, serialize: false, socketless: true,
  });
  widget.serialize = false;
  queueMicrotask(look);
}
