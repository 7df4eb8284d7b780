import { coverPolygon, cutPieces, isEmpty, placePieces, placing, toBytes } from "../geometry.js";
import { newCanvas } from "./dom.js";

/**
 * The pixels of a coarse edit. At rest they are exact; while something is dragged, pieces are moved by the canvas itself, which
 * is fast and looks the same.
 */
export class Collage {
  /** @param {{canvas: HTMLCanvasElement, context: CanvasRenderingContext2D}} ground */
  constructor(ground) {
    const { width, height } = ground.canvas;
    this.image = ground.context.getImageData(0, 0, width, height);
    this.ground = ground;
    this.result = newCanvas(width, height);
    this.holes = newCanvas(width, height);
    this.cutouts = new Map();
    this.last = null;
  }

  /** The first step, kept while outlines, copies and background stay. */
  #cut(pieces, background) {
    const key = JSON.stringify([background, pieces.map((p) => (p.copy ? null : p.outline))]);
    if (key !== this.cutKey) {
      this.cutKey = key;
      this.cut = cutPieces(this.image, pieces, background);
      put(this.holes, this.ground, this.cut.window, this.cut.colour);
    }
    return this.cut;
  }

  /** Draw the exact result. */
  update(pieces, background) {
    const { window, colour } = placePieces(this.image, pieces, background, this.#cut(pieces, background));
    put(this.result, this.ground, window, colour);
    const used = new Set(pieces.map(keyOf));
    for (const key of this.cutouts.keys()) if (!used.has(key)) this.cutouts.delete(key);
  }

  /** A piece cut out of the original: {canvas, window}; null if it lies outside. */
  cutout(piece) {
    const key = keyOf(piece);
    if (!this.cutouts.has(key)) {
      const { window, cover } = coverPolygon(piece.outline, this.image.width, this.image.height);
      this.cutouts.set(key, isEmpty(window) ? null : { window, canvas: this.#masked(window, cover) });
    }
    return this.cutouts.get(key);
  }

  #masked(window, cover) {
    const w = window.right - window.left, h = window.bottom - window.top, { canvas, context } = newCanvas(w, h);
    const part = this.ground.context.getImageData(window.left, window.top, w, h);
    cover.forEach((c, i) => (part.data[i * 4 + 3] = Math.round(c * 255)));
    context.putImageData(part, 0, 0);
    return canvas;
  }

  /** The exact result onto a context in pixels of the ground. */
  paint(context) {
    context.drawImage(this.result.canvas, 0, 0);
  }

  /** Nearly the same at once, while pieces move. */
  paintMoving(context, pieces, background) {
    this.#cut(pieces, background);
    context.drawImage(this.holes.canvas, 0, 0);
    for (const piece of pieces) {
      const found = piece.delete ? null : this.cutout(piece);
      if (!found) continue;
      const { cos, sin, sx, sy, mx, my, dx, dy } = placing(piece);
      context.save();
      context.translate(mx + dx, my + dy);
      context.transform(cos * sx, sin * sx, -sin * sy, cos * sy, 0, 0);
      context.drawImage(found.canvas, found.window.left - mx, found.window.top - my);
      context.restore();
    }
  }
}

const keyOf = (piece) => piece.outline.join();

function put(target, ground, window, colour) {
  target.context.drawImage(ground.canvas, 0, 0);
  if (!window) return;
  const w = window.right - window.left, h = window.bottom - window.top;
  target.context.putImageData(new ImageData(toBytes(colour), w, h), window.left, window.top);
}
