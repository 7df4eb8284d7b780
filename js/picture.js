import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addressOf, annotated, choose, FILES, upload } from "./files.js";

/** Which picture is connected to a node, as far as the page can know before and after a run. */

/** The page's own number for the inner side of a subgraph's inputs. */
const SUBGRAPH_INPUT = -10;
const BYPASSED = 4;
const MAX_STEPS = 64;
/** Nodes for picture files: ComfyUI's, and ours, which knows examples as well. */
const LOADERS = ["LoadImage", "FramePainterPicture"];

/** @typedef {{url: string, key: string}} Source where the picture can be had; the key changes when the picture does */

const linkOf = (graph, id) => graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id];
const nodeOf = (graph, id) => graph?.getNodeById?.(id) ?? null;

/**
 * The node output that an input gets its picture from: through reroutes, bypassed nodes and subgraphs.
 * @param {object} node
 * @param {string} name of the input
 * @returns {{node: object, slot: number} | null}
 */
export function originOf(node, name) {
  let graph = node.graph;
  let link = linkOf(graph, node.inputs?.find((input) => input.name === name)?.link);
  for (let step = 0; link && step < MAX_STEPS; step++) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) {
      const outer = subgraphNode(graph);
      if (!outer) return null;
      const input = outer.inputs?.[link.origin_slot];
      graph = outer.graph;
      link = linkOf(graph, input?.link);
      continue;
    }
    const origin = nodeOf(graph, link.origin_id);
    if (!origin) return null;
    if (origin.subgraph) {
      const ids = origin.subgraph.outputs?.[link.origin_slot]?.linkIds ?? [];
      graph = origin.subgraph;
      link = linkOf(graph, ids[0]);
    } else if (origin.isVirtualNode || origin.type === "Reroute" || origin.mode === BYPASSED) {
      const type = origin.outputs?.[link.origin_slot]?.type;
      const input = origin.inputs?.find((i) => i.link != null && (origin.inputs.length === 1 || i.type === type));
      link = linkOf(graph, input?.link);
    } else {
      return { node: origin, slot: link.origin_slot };
    }
  }
  return null;
}

/** The node that stands for a subgraph in the graph around it. */
function subgraphNode(inner) {
  const root = inner.rootGraph ?? app.graph;
  for (const graph of [root, ...(root?.subgraphs?.values?.() ?? [])]) {
    const found = graph.nodes?.find((node) => node.subgraph && node.subgraph.id === inner.id);
    if (found) return found;
  }
  return null;
}

/** What a node last showed, by the ids that different frontends use. */
function outputsOf(node) {
  const all = app.nodeOutputs ?? {}, inner = node.graph && node.graph !== (node.graph.rootGraph ?? app.graph);
  return (inner ? all[`${node.graph.id}:${node.id}`] : undefined) ?? all[String(node.id)] ?? null;
}

/** What a Preview Image or Save Image at the same output shows. */
function besides(origin, slot) {
  const targets = (origin.outputs?.[slot]?.links ?? []).map((id) => nodeOf(origin.graph, linkOf(origin.graph, id)?.target_id));
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
  let url = null;
  if (origin) {
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
  return url && { url, key: url };
}

/**
 * Get a picture with the very numbers in its file: no colour conversion, no transparency.
 * @param {Source} source
 * @param {AbortSignal} [signal]
 * @returns {Promise<ImageBitmap>}
 */
export async function fetchPicture(source, signal) {
  const answer = await fetch(source.url, { signal });
  if (!answer.ok) throw new Error(`the picture could not be loaded (${answer.status})`);
  return createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/**
 * Upload a picture and connect it to an input by a Load Image node; one that is there already gets the new file.
 * @param {object} node
 * @param {string} name of the input
 * @param {File} file
 */
export async function connectFile(node, name, file) {
  const path = await upload(file);
  let loader = originOf(node, name)?.node;
  const slot = node.inputs.findIndex((input) => input.name === name);
  if (!LOADERS.includes(loader?.comfyClass) || loader.graph !== node.graph) {
    loader = globalThis.LiteGraph.createNode(LOADERS[0]);
    node.graph.add(loader);
    const stack = node.inputs.slice(0, slot).filter((input) => input.link != null).length;
    loader.pos = [node.pos[0] - loader.size[0] - 60, node.pos[1] + stack * 60];
    loader.connect(0, node, slot);
  }
  choose(loader, loader.widgets.find((w) => w.name === "image"), path);
}
