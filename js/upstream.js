import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { promptId } from "./graph.js";

/** Runs only what lies before an input, to see its picture. */

const FIRST = "framepainter-first", SHOWN = "framepainter-picture";

/**
 * Run what an input depends on and nothing else.
 * @param {object} node
 * @param {string} name of the input
 * @param {AbortSignal} signal stops waiting
 * @returns {Promise<{filename: string, subfolder: string, type: string}>} the first picture, in the temp folder
 */
export async function makePicture(node, name, signal) {
  const { output: all, workflow } = await app.graphToPrompt();
  const from = all[promptId(node)]?.inputs?.[name];
  if (!Array.isArray(from)) throw new Error("Nothing that could be run is connected.");
  const output = {};
  const add = (id) => {
    if (id in output || !all[id]) return;
    output[id] = all[id];
    for (const value of Object.values(all[id].inputs)) if (Array.isArray(value) && typeof value[0] === "string") add(value[0]);
  };
  add(from[0]);
  output[FIRST] = { class_type: "ImageFromBatch", inputs: { image: from, batch_index: 0, length: 1 } };
  output[SHOWN] = { class_type: "PreviewImage", inputs: { images: [FIRST, 0] } };
  return await run({ output, workflow }, signal);
}

function run(prompt, signal) {
  return new Promise((done, failed) => {
    const ending = new AbortController(), seen = [];
    let id = null;
    const end = (settle, value) => {
      ending.abort();
      settle(value);
    };
    const react = ({ type, detail }) => {
      if (id === null) seen.push({ type, detail });  // it may come before the answer that says what the run is called
      else if (detail?.prompt_id !== id) return;
      else if (type === "executed" && detail.node === SHOWN) end(done, detail.output.images[0]);
      else if (type === "execution_error") end(failed, new Error(`"${detail.node_type}" failed: ${detail.exception_message}`.trim()));
      else if (type === "execution_interrupted") end(failed, new Error("The run was cancelled."));
    };
    for (const type of ["executed", "execution_error", "execution_interrupted"]) {
      api.addEventListener(type, react);
      ending.signal.addEventListener("abort", () => api.removeEventListener(type, react));
    }
    signal.addEventListener("abort", () => end(failed, signal.reason));
    api.queuePrompt(0, prompt).then((answer) => {
      id = answer.prompt_id;
      seen.forEach(react);
    }, (error) => end(failed, new Error(error.response?.error?.message ?? error.message)));
  });
}
