import { around, drawStroke, drawStrokes, isEmpty, strokeWindow } from "../geometry.js";
import { newCanvas } from "./dom.js";

const TILE = 64;
/** Bytes that may be kept to take strokes back at once. */
const KEPT = 96 << 20;

/**
 * The pixels of a sketch: what strokes cover, and a canvas of it. What lies under a stroke is kept tile by tile, so that taking it
 * back does not draw all others again.
 */
export class StrokeLayer {
  /** @param {{width: number, height: number}} size */
  constructor({ width, height }) {
    Object.assign(this, { width, height, across: Math.ceil(width / TILE), shown: [], under: [], kept: 0 });
    this.cover = new Uint8Array(width * height);
    this.layer = newCanvas(width, height, { willReadFrequently: true });  // else each put costs milliseconds
    this.tile = new ImageData(TILE, TILE);
    this.tile.data.fill(255);
    /** Tiles of the stroke that is being drawn, as they were before it. @type {Map<number, Uint8Array>} */
    this.open = new Map();
  }

  get canvas() {
    return this.layer.canvas;
  }

  /** Draw a part of a stroke that is not finished. */
  extend(part) {
    this.#draw(part, this.open);
  }

  /** Take the unfinished stroke off again. */
  takeBack() {
    this.#restore(this.open);
    this.open = new Map();
  }

  /** Show these strokes, with as little work as what differs from those shown takes. */
  update(strokes) {
    const { shown } = this;
    let same = 0;
    while (same < Math.min(shown.length, strokes.length) && equal(shown[same], strokes[same])) same++;
    const gone = shown.length - same;
    if (gone && strokes.length > same) this.#again(strokes, same);
    else if (gone && this.under.slice(same).every(Boolean)) for (let i = 0; i < gone; i++) this.#pop();
    else if (gone) this.#again(strokes, same);
    else if (strokes.length - same > 1) this.#again(strokes, same);
    else for (const stroke of strokes.slice(same)) this.#push(stroke);
    this.shown = [...strokes];
  }

  #push(stroke) {
    const tiles = new Map();
    this.#draw(stroke, tiles);
    this.under.push(tiles);
    this.kept += sizeOf(tiles);
    for (let i = 0; this.kept > KEPT && i < this.under.length; i++) {
      this.kept -= sizeOf(this.under[i]);
      this.under[i] = null;
    }
  }

  #pop() {
    const tiles = this.under.pop();
    this.#restore(tiles);
    this.kept -= sizeOf(tiles);
  }

  /** Draw all strokes again where those from a number on, old or new, are. */
  #again(strokes, same) {
    const { width, height } = this, parts = [...this.shown.slice(same), ...strokes.slice(same)].filter((s) => s.points.length);
    const window = parts.reduce((all, stroke) => around(all, strokeWindow(stroke, width, height)), null);
    this.under = strokes.map((_, i) => (i < same ? this.under[i] : null) ?? null);
    this.kept = this.under.reduce((sum, tiles) => sum + sizeOf(tiles), 0);
    if (!window || isEmpty(window)) return;
    drawStrokes(strokes, width, height, this.cover, window);
    for (let y = Math.floor(window.top / TILE); y * TILE < window.bottom; y++) {
      for (let x = Math.floor(window.left / TILE); x * TILE < window.right; x++) this.#show(y * this.across + x);
    }
  }

  #draw(stroke, tiles) {
    const touched = new Set(this.#tilesOf(stroke));
    for (const tile of touched) if (!tiles.has(tile)) tiles.set(tile, this.#copy(tile));
    drawStroke(this.cover, this.width, stroke, strokeWindow(stroke, this.width, this.height));
    for (const tile of touched) this.#show(tile);
  }

  /** The tiles that a stroke can reach, some of them twice. */
  * #tilesOf({ points, size }) {
    const reach = size / 2 + 1;
    for (let i = 0; i < points.length; i += 2) {
      const last = Math.min(i + 2, points.length - 2), run = points[last] - points[i], rise = points[last + 1] - points[i + 1];
      const steps = Math.max(1, Math.ceil(Math.hypot(run, rise) / TILE));
      for (let step = 0; step < steps; step++) {
        const [x0, x1] = [points[i] + run * step / steps, points[i] + run * (step + 1) / steps];
        const [y0, y1] = [points[i + 1] + rise * step / steps, points[i + 1] + rise * (step + 1) / steps];
        yield* this.#tilesIn(Math.min(x0, x1) - reach, Math.min(y0, y1) - reach, Math.max(x0, x1) + reach, Math.max(y0, y1) + reach);
      }
    }
  }

  * #tilesIn(left, top, right, bottom) {
    const [endX, endY] = [Math.min(right, this.width - 1), Math.min(bottom, this.height - 1)];
    for (let y = Math.floor(Math.max(0, top) / TILE); y * TILE <= endY; y++) {
      for (let x = Math.floor(Math.max(0, left) / TILE); x * TILE <= endX; x++) yield y * this.across + x;
    }
  }

  #place(tile) {
    const left = tile % this.across * TILE, top = Math.floor(tile / this.across) * TILE;
    return { left, top, width: Math.min(TILE, this.width - left), height: Math.min(TILE, this.height - top) };
  }

  #copy(tile) {
    const { left, top, width, height } = this.#place(tile), out = new Uint8Array(width * height);
    for (let row = 0; row < height; row++) {
      const from = (top + row) * this.width + left;
      out.set(this.cover.subarray(from, from + width), row * width);
    }
    return out;
  }

  #restore(tiles) {
    for (const [tile, pixels] of tiles) {
      const { left, top, width, height } = this.#place(tile);
      for (let row = 0; row < height; row++) this.cover.set(pixels.subarray(row * width, (row + 1) * width), (top + row) * this.width + left);
      this.#show(tile);
    }
  }

  #show(tile) {
    const { left, top, width, height } = this.#place(tile), { data } = this.tile;
    for (let row = 0; row < height; row++) {
      for (let column = 0, at = (top + row) * this.width + left, i = row * TILE * 4 + 3; column < width; column++, at++, i += 4) data[i] = this.cover[at];
    }
    this.layer.context.putImageData(this.tile, left, top, 0, 0, width, height);
  }
}

const sizeOf = (tiles) => (tiles ? tiles.size * TILE * TILE : 0);

function equal(a, b) {
  return a === b || (a.tool === b.tool && a.size === b.size && a.points.length === b.points.length
                     && a.points.every((v, i) => v === b.points[i]));
}
