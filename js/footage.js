import { api } from "../../scripts/api.js";
import { allNodes, inputLink, originOf, valueOf, widgetOf } from "./graph.js";

/** Which frame of which video file comes out of a node, as far as the page can tell before a run. */

const MAX_STEPS = 16;
/** Nodes for video files -> their widget. */
const FILES = { LoadVideo: "file", FramePainterVideo: "file" };
const SETTINGS = ["fps", "start", "end", "even_size", "longer_side"];

/**
 * @typedef {object} Footage
 * @property {Record<string, string>} query for the server: the file, and how it is read
 * @property {number} index of the frame, within what is read
 * @property {number} after seconds of it that are left out before that
 * @property {{node: object, widget: object} | null} pick the widget that chooses the frame
 * @property {{node: object, slot: number}} frames the output that has all frames
 * @property {boolean} free whether another frame can be chosen
 */

/**
 * @param {object} node
 * @param {number} slot of its output
 * @returns {Footage | null} null: it is no frame of a file, or only a run can tell which
 */
export function footageOf(node, slot) {
  const found = { index: 0, after: 0, pick: null, free: true };
  for (let step = 0; node && step < MAX_STEPS; step++) {
    if (node.comfyClass === "ImageFromBatch") {
      const pick = widgetOf(node, "batch_index");
      if (!pick) return null;
      found.index += Number(pick.widget.value);
      found.pick ??= pick;
      ({ node, slot } = originOf(node, "image") ?? {});
    } else if (node.comfyClass === "FramePainterPlanClips" && slot === 1) {
      const start = valueOf(node, "start");
      if (start === undefined) return null;
      found.after += Number(start);
      found.free = false;  // a plan begins where it begins
      ({ node, slot } = originOf(node, "frames") ?? {});
    } else {
      const query = queryOf(node, slot);
      return query && { ...found, query, frames: { node, slot } };
    }
  }
  return null;
}

/** The file behind a node that reads a video, and how it reads it. */
function queryOf(node, slot) {
  const reads = node.comfyClass === "FramePainterReadVideo", components = node.comfyClass === "GetVideoComponents";
  if (slot !== 0 || !(reads || components)) return null;
  const file = originOf(node, "video")?.node, name = file && FILES[file.comfyClass] && valueOf(file, FILES[file.comfyClass]);
  if (typeof name !== "string" || !name) return null;
  if (components) return { file: name, by: "components" };
  const query = { file: name, by: "read" };
  for (const setting of SETTINGS) {
    const value = valueOf(node, setting);
    if (value === undefined) return null;
    query[setting] = String(value);
  }
  return query;
}

const address = (path, query) => api.apiURL(`/framepainter/${path}?${new URLSearchParams(query)}`);

/** Address of the frame itself. @param {Footage} footage */
export const frameAddress = ({ query, index, after }) => address("frame", { ...query, index, after });

const SHOWN = { count: 24, side: 112 };

/** What the server says of all frames, for a strip. @param {Footage} footage */
export async function fetchStrip({ query }, signal) {
  const answer = await fetch(address("strip", { ...query, ...SHOWN }), { signal });
  if (!answer.ok) throw new Error(answer.status === 415 ? await answer.text() : `the frames could not be loaded (${answer.status})`);
  return answer.json();
}

/**
 * Edit another frame: the number goes to the node that picks it, which is put in if there is none, and to each Carry Edit of the
 * same frames that has one keyframe.
 * @param {object} node whose input gets the frame
 * @param {string} name of the input
 * @param {Footage} footage
 * @param {number} index
 */
export function chooseFrame(node, name, footage, index) {
  const { pick, frames } = footage;
  if (pick) set(pick.node, pick.widget, index - footage.index + Number(pick.widget.value));
  else insertPick(node, name, index);
  for (const carry of allNodes().filter(({ comfyClass }) => comfyClass === "FramePainterCarryEdit")) {
    const from = originOf(carry, "frames"), keyframes = widgetOf(carry, "keyframes");
    const same = from && from.node === frames.node && from.slot === frames.slot;
    if (same && /^\s*\d+\s*$/.test(keyframes?.widget.value ?? "")) set(keyframes.node, keyframes.widget, String(index));
  }
}

function set(node, widget, value) {
  widget.value = value;
  widget.callback?.(value);
  node.graph?.setDirtyCanvas?.(true, true);
}

function insertPick(node, name, index) {
  const slot = node.inputs.findIndex((input) => input.name === name), link = inputLink(node, slot);
  const pick = globalThis.LiteGraph.createNode("ImageFromBatch"), source = node.graph.getNodeById(link.origin_id);
  node.graph.add(pick);
  pick.pos = [node.pos[0] - pick.size[0] - 40, node.pos[1] - pick.size[1] - 40];
  set(pick, pick.widgets.find((w) => w.name === "batch_index"), index);
  source.connect(link.origin_slot, pick, 0);
  pick.connect(0, node, slot);
}
