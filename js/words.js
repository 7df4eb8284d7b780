/**
 * The words of Prompt Edit as chips: what the server's reading of two prompts says about each, and a changed state
 * (docs/editor_state.md). Knows no page.
 *
 * @typedef {{list: "source" | "edited", at: number, word: string, kind: string, partners: number[], blend: boolean, away: boolean,
 *   state?: string, from?: number[], weight?: number, steps?: number[]}} Chip
 *   kind: kept, swapped, added, removed, or plain where nothing is known.  partners: words of the other prompt whose map it shares.
 */

export const LISTS = ["source", "edited"];
const VERSION = 1;
const PLAIN = { blend: false, away: false, weight: 1 };  // what a word has without an entry
const WEIGHT_LIMIT = 100;
/** How far a weight goes with one pixel of a drag; finer with Shift. */
const PER_PIXEL = 0.0125, FINE = 0.2;

/**
 * @param {object} reading the server's answer
 * @param {"source" | "edited"} list
 * @returns {Chip[]}
 */
export function chipsOf(reading, list) {
  const side = LISTS.indexOf(list), { words, chips } = reading[list];
  return words.map((word, at) => {
    const chip = { list, at, word, blend: false, away: false, ...chips[at] };
    const partners = reading.links.filter((link) => link[side] === at).map((link) => link[1 - side]);
    return { ...chip, partners, kind: chips.length ? kindOf(reading, chip, partners) : "plain" };
  }).filter((chip) => chip.word);
}

function kindOf(reading, chip, partners) {
  if (chip.list === "edited") return chip.state === "kept" && !partners.length ? "added" : chip.state;
  if (!partners.length) return "removed";
  return partners.some((n) => reading.edited.chips[n].state === "swapped") ? "swapped" : "kept";
}

/** @returns {string} what a chip says to who cannot see it: "blue, swapped for red, weight 2, the edit may act here" */
export function describe(chip, reading) {
  const others = chip.partners.map((n) => reading[chip.list === "source" ? "edited" : "source"].words[n]).join(" ");
  const kind = { kept: "kept", added: "added", removed: "left out", plain: "",
                 swapped: chip.list === "source" ? `becomes ${others}` : `takes the place of ${others}` }[chip.kind];
  return [chip.word, kind, (chip.weight ?? 1) !== 1 && `weight ${chip.weight}`,
          chip.steps && `in steps ${chip.steps[0]} to ${chip.steps[1]}`, chip.blend && "the edit may act here",
          chip.away && "the edit may not act here"].filter(Boolean).join(", ");
}

/** A weight after a drag of so many pixels to the right, to a tenth, finely to a hundredth. */
export function draggedWeight(start, pixels, fine = false) {
  const digits = fine ? 100 : 10, moved = start + pixels * PER_PIXEL * (fine ? FINE : 1);
  return limited(Math.round(moved * digits) / digits);
}

/** A weight that may be used. */
export function limited(weight) {
  return Math.max(-WEIGHT_LIMIT, Math.min(WEIGHT_LIMIT, weight)) + 0;  // + 0 turns -0 into 0
}

/**
 * A state in which something is said about words. Entries keep keys that are unknown here; one that says nothing goes.
 * @param {object} said the state so far
 * @param {Chip[]} chips
 * @param {object} changes undefined takes a key back
 */
export function changed(said, chips, changes) {
  const out = { ...said, source: [...(said.source ?? [])], edited: [...(said.edited ?? [])] };
  for (const { list, at, word } of chips) {
    const place = out[list].findIndex((entry) => entry.at === at);
    const entry = { ...(place < 0 ? { at, word } : out[list][place]), ...changes };
    for (const key of Object.keys(entry)) if (entry[key] === undefined || entry[key] === PLAIN[key]) delete entry[key];
    const says = Object.keys(entry).length > 2;
    if (place >= 0) out[list].splice(place, 1, ...(says ? [entry] : []));
    else if (says) out[list].push(entry);
    out[list].sort((a, b) => a.at - b.at);
  }
  return out;
}

/** A state as the widget's text; empty if it says nothing. */
export function writeWords(said) {
  const plain = Object.keys(said).every((key) => ["version", ...LISTS].includes(key));
  if (plain && LISTS.every((list) => !said[list]?.length)) return "";
  return JSON.stringify({ ...said, version: VERSION });
}

const COMMENTS = /\/\*[\s\S]*?\*\/|\/\/.*/g;

/**
 * A prompt as the page will send it.
 * @returns {string | null} null: it has choices in braces, which each run draws
 */
export function sentPrompt(text) {
  const bare = text.replace(COMMENTS, "");
  return /(^|[^\\])[{}]/.test(bare) ? null : bare.replace(/\\([{}|])/g, "$1");
}
