import { element } from "./editor/dom.js";
import { chipsOf, describe, LISTS } from "./words.js";

/** The elements of Prompt Edit's word chips. */

const LABELS = { source: "Source", edited: "Edited" };
export const PROMPTS = { source: "source_text", edited: "edited_text" };
const LEGEND = { kept: "kept", swapped: "swapped", added: "added", removed: "left out", blend: "acts here", away: "not here" };
const NEAR = 15;  // tokens to the limit from where they are counted on the node

/** What the colours mean. */
export function legend() {
  return element("div", { class: "framepainter-legend", "aria-hidden": "true" },
    ...Object.entries(LEGEND).map(([kind, text]) => element("span", { "data-kind": kind, text })));
}

/** Show of a legend what occurs in a reading. */
export function explain(made, reading) {
  const all = reading ? LISTS.flatMap((list) => chipsOf(reading, list)) : [];
  const seen = new Set(all.flatMap((chip) => [chip.kind, chip.blend && "blend", chip.away && "away"]));
  for (const entry of made.children) entry.hidden = !seen.has(entry.dataset.kind);
}

/**
 * The chips of a prompt.
 * @param {object} reading the server's answer
 * @param {"source" | "edited"} list
 * @param {{list: string, at: number} | null} picked the chip that Tab leads to, else the first
 * @param {boolean} open whether they may be changed
 */
export function wordRow(reading, list, picked, open) {
  const { tokens } = reading[list], chips = chipsOf(reading, list);
  const here = chips.find(({ at }) => picked?.list === list && picked.at === at) ?? chips[0];
  const made = chips.map((chip) => chipElement(chip, describe(chip, reading), chip === here, open));
  const over = tokens > reading.limit, near = tokens > reading.limit - NEAR;
  return element("div", { class: "framepainter-word-row", role: "group", "aria-label": `Words of the ${list} prompt` },
    element("div", { class: "framepainter-word-side", "data-level": over ? "warn" : null, title: `${tokens} of at most ${reading.limit} tokens` },
      element("b", { text: LABELS[list] }), element("span", { text: near ? `${tokens} of ${reading.limit} tokens` : "" })),
    element("div", { class: "framepainter-chips" }, ...(made.length ? made : [element("i", { text: `${PROMPTS[list]} is empty` })])));
}

function chipElement(chip, label, reachable, open) {
  const steps = chip.steps?.map((share) => Math.round(share * 100)).join("–");
  const made = element("button", { type: "button", class: "framepainter-chip", "data-list": chip.list, "data-at": chip.at,
    "data-kind": chip.kind, "data-area": chip.away ? "away" : chip.blend ? "blend" : null, "aria-label": label, "aria-pressed": String(chip.blend),
    "aria-disabled": open ? null : "true", tabindex: reachable ? "0" : "-1" },
  element("span", { class: "framepainter-chip-word", text: chip.word }), element("span", { class: "framepainter-chip-weight" }),
  steps ? element("span", { class: "framepainter-chip-steps", text: `${steps} %` }) : null);
  showWeight(made, chip.weight ?? 1);
  return made;
}

/** Write a weight on a chip; 1 only while it is dragged. */
export function showWeight(made, weight) {
  made.querySelector(".framepainter-chip-weight").textContent = weight === 1 && !("dragged" in made.dataset) ? "" : `×${weight}`;
}

/** What an edited word is to the source prompt: found automatically, added, or in the place of one of its words. */
export function stateField(chip, reading, change) {
  const entry = reading.said.edited.find(({ at }) => at === chip.at), hand = entry?.state;
  const now = hand === "swapped" ? `from ${entry.from?.length === 1 ? entry.from[0] : "more"}` : hand ?? "automatic";
  const others = chip.partners.map((n) => reading.source.words[n]).join(" ");
  const found = chip.kind === "swapped" ? `${others} > ${chip.word}` : chip.kind;
  const options = [["automatic", now === "automatic" ? `automatic: ${found}` : "automatic"], ["added", `${chip.word}: added`],
                   ...(now === "kept" ? [["kept", `${chip.word}: kept`]] : []),
                   ...(now === "from more" ? [["from more", `${others} > ${chip.word}`]] : []),
                   ...chipsOf(reading, "source").map(({ at, word }) => [`from ${at}`, `${word} > ${chip.word}`])];
  return element("select", { "aria-label": `What ${chip.word} is`, title: `How “${chip.word}” relates to the source prompt`, on: {
    change: (event) => change(event.target.value), keydown: (event) => event.stopPropagation(),
  } }, ...options.map(([value, text]) => element("option", { value, text, selected: value === now })));
}

export function weightField(chip, step, change) {
  return element("input", { type: "number", step, value: chip.weight, "aria-label": `Weight of ${chip.word}`,
    title: `Weight of “${chip.word}”`,
    on: { change: (event) => change(event.target.valueAsNumber), keydown: (event) => event.stopPropagation() } });
}
