import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addressOf, annotated, choose, FILES, upload } from "./files.js";
import { footageOf, frameAddress } from "./footage.js";
import { inputLink, originOf, titleOf } from "./graph.js";

/** Which picture is connected to a node, as far as the page can know before and after a run. */

/** Nodes for picture files: ComfyUI's, and ours, which knows examples as well. */
const LOADERS = ["LoadImage", "FramePainterPicture"];

/**
 * @typedef {object} Source where the picture can be had
 * @property {string} url
 * @property {string} key changes when the picture does
 * @property {import("./footage.js").Footage | null} footage the video that it is a frame of
 */

/** What a node last showed, by the ids that different frontends use. */
function outputsOf(node) {
  const all = app.nodeOutputs ?? {}, inner = node.graph && node.graph !== (node.graph.rootGraph ?? app.graph);
  return (inner ? all[`${node.graph.id}:${node.id}`] : undefined) ?? all[String(node.id)] ?? null;
}

/** What a Preview Image or Save Image at the same output shows. */
function besides(origin, slot) {
  const targets = origin.getOutputNodes?.(slot) ?? [];
  const found = targets.find((node) => /^(Preview|Save)Image$/.test(node?.type ?? "") && outputsOf(node)?.images?.[0]);
  return found && outputsOf(found).images[0];
}

const view = (file) => {
  const query = new URLSearchParams({ filename: file.filename, subfolder: file.subfolder ?? "", type: file.type ?? "output" });
  return pixelsOnly(api.apiURL(`/view?${query}`));
};

/** What the network gets: without transparency, without the reduced quality of a preview, and turned as Load Image turns it. */
function pixelsOnly(address) {
  const url = new URL(address, location.href);
  url.searchParams.delete("preview");
  url.searchParams.delete("rand");
  // The pack's own route tells what Load Image makes of a file: the host's /view gives it as it is stored.
  url.pathname = url.pathname.replace(/\/view$/, "/framepainter/picture");
  return url.href;
}

/**
 * The picture at an input.
 * @param {object} node
 * @param {string} name of the input
 * @param {object | null} own what the node itself reported after a run
 * @returns {Source | null}
 */
export function sourceOf(node, name, own = null) {
  const { node: origin, slot } = originOf(node, name) ?? {};
  const footage = origin ? footageOf(origin, slot) : null;
  let url = null;
  if (footage) url = frameAddress(footage);
  else if (origin) {
    const file = origin.widgets?.find((w) => w.name === "image")?.value;
    const shown = outputsOf(origin)?.images?.[0];
    if (FILES[origin.comfyClass]?.[0] === "image" && file) url = pixelsOnly(addressOf(file));
    else if (/^LoadImage/.test(origin.comfyClass ?? origin.type ?? "") && typeof file === "string" && file) url = view(annotated(file));
    else if (shown?.filename) url = view(shown);
    else if (besides(origin, slot)) url = view(besides(origin, slot));
    else if (origin.imgs?.[0]?.src) url = pixelsOnly(origin.imgs[0].src);
  }
  if (!url) {
    const reported = (own ?? outputsOf(node))?.framepainter_picture?.[0];
    if (origin && reported?.filename) url = view(reported);
  }
  return url && { url, key: url, footage };
}

/**
 * Get a picture with the very numbers in its file: no colour conversion, no transparency.
 * @param {Source} source
 * @param {AbortSignal} [signal]
 * @returns {Promise<ImageBitmap>}
 */
export async function fetchPicture(source, signal) {
  const answer = await fetch(source.url, { signal });
  if (!answer.ok) throw new Error((answer.status === 415 && await answer.text()) || `the picture could not be loaded (${answer.status})`);
  return createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/**
 * What else than a node for picture files is connected to an input.
 * @param {object} node
 * @param {string} name of the input
 * @returns {string | null} its title
 */
export function otherOrigin(node, name) {
  const origin = originOf(node, name)?.node;
  return origin && !LOADERS.includes(origin.comfyClass) ? titleOf(origin) : null;
}

/**
 * Upload a picture and connect it to an input by a Load Image node; a node for picture files that is there gets the new file.
 * @param {object} node
 * @param {string} name of the input
 * @param {File} file
 */
export async function connectFile(node, name, file) {
  const path = await upload(file);
  let loader = originOf(node, name)?.node;
  if (!LOADERS.includes(loader?.comfyClass)) {
    const slot = node.inputs.findIndex((input) => input.name === name);
    loader = globalThis.LiteGraph.createNode(LOADERS[0]);
    node.graph.add(loader);
    const stack = node.inputs.slice(0, slot).filter((_, i) => inputLink(node, i)).length;
    loader.pos = [node.pos[0] - loader.size[0] - 60, node.pos[1] + stack * 60];
    loader.connect(0, node, slot);
  }
  choose(loader, loader.widgets.find((w) => w.name === "image"), path);
}
