import { button, element, newCanvas } from "./dom.js";

const THUMB = 40;

/**
 * The list of pieces beside the stage, topmost first, and the numbers of the selected one.
 * @param {{select: (index: number) => void, lift: (index: number, by: number) => void, discard: (index: number) => void,
 *   set: (values: {move?: number[], scale?: number[], rotate?: number}) => void}} on
 * @returns {{panel: HTMLElement, show: (pieces: any[], selected: number, cutout: (piece: any) => any) => void}}
 */
export function piecesPanel(on) {
  const list = element("ul", { class: "framepainter-pieces", role: "listbox", "aria-label": "Pieces, topmost first" });
  const fields = {};
  const number = (name, short, label) => {
    fields[name] = element("input", { type: "number", step: 1, "aria-label": label, title: label, "data-number": name,
                                      on: { change: () => apply(name) } });
    return element("label", { title: label }, short, fields[name]);
  };
  const numbers = element("div", { class: "framepainter-numbers", hidden: true }, number("x", "X", "Moved to the right, in pixels"),
                          number("y", "Y", "Moved down, in pixels"), number("w", "W %", "Width in percent; negative: flipped"),
                          number("h", "H %", "Height in percent; negative: flipped"), number("r", "Turn", "Turned clockwise, in degrees"));
  const panel = element("aside", { class: "framepainter-side", "aria-label": "Pieces" }, element("h3", { text: "Pieces" }), list, numbers);
  let current = null;

  function apply(name) {
    const value = Number(fields[name].value);
    if (!current || fields[name].value === "" || !Number.isFinite(value)) return;
    const { move, scale } = full(current), percent = (v) => (Math.sign(v) || 1) * Math.max(1, Math.abs(v)) / 100;
    on.set({
      x: { move: [value, move[1]] }, y: { move: [move[0], value] }, w: { scale: [percent(value), scale[1]] },
      h: { scale: [scale[0], percent(value)] }, r: { rotate: value },
    }[name]);
  }

  function row(piece, index, selected, count, cutout) {
    const what = [piece.delete ? (piece.copy ? "copy and erase: no effect" : "erased") : piece.copy ? "copied" : "", (piece.scale ?? [1, 1]).some((v) => v < 0) ? "flipped" : ""];
    const still = !(piece.move ?? [0, 0]).some(Boolean) && !piece.rotate && (piece.scale ?? [1, 1]).every((v) => v === 1);
    const act = (id, icon, label, run, disabled) => {
      const made = button({ id, icon, label, run });
      made.disabled = Boolean(disabled);
      made.addEventListener("click", (event) => event.stopPropagation());
      return made;
    };
    return element("li", {
      class: "framepainter-piece", role: "option", tabindex: "0", "aria-selected": String(index === selected),
      on: { click: () => on.select(index) },
    }, thumb(cutout(piece)),
      element("span", { class: "framepainter-name" }, `Piece ${index + 1}`, element("small", { text: what.filter(Boolean).join(", ") || (still ? "in its place" : "moved") })),
      act("up", "up", `Bring piece ${index + 1} forward`, () => on.lift(index, 1), index === count - 1),
      act("down", "down", `Send piece ${index + 1} back`, () => on.lift(index, -1), index === 0),
      act("discard", "close", `Discard piece ${index + 1}`, () => on.discard(index)));
  }

  return {
    panel,
    show(pieces, selected, cutout) {
      const rows = pieces.map((piece, i) => row(piece, i, selected, pieces.length, cutout)).reverse();
      const none = element("li", { class: "framepainter-none", text: "Lasso or box a part of the picture to move, copy or erase it." });
      list.replaceChildren(...(rows.length ? rows : [none]));
      current = pieces[selected] ?? null;
      numbers.hidden = !current;
      if (!current) return;
      const { move, scale, rotate } = full(current);
      const values = { x: move[0], y: move[1], w: scale[0] * 100, h: scale[1] * 100, r: rotate };
      for (const [name, value] of Object.entries(values)) fields[name].value = String(Math.round(value * 10) / 10);
    },
  };
}

const full = (piece) => ({ move: piece.move ?? [0, 0], scale: piece.scale ?? [1, 1], rotate: piece.rotate ?? 0 });

function thumb(found) {
  const { canvas, context } = newCanvas(THUMB * 2, THUMB * 2);
  if (found) {
    const { width, height } = found.canvas, fit = Math.min(canvas.width / width, canvas.height / height);
    context.drawImage(found.canvas, (canvas.width - width * fit) / 2, (canvas.height - height * fit) / 2, width * fit, height * fit);
  }
  return canvas;
}
