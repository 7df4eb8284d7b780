import { newCanvas } from "./editor/dom.js";
import { paintDrags } from "./editor/drag.js";
import { drawStrokes, placePieces, toBytes } from "./geometry.js";
import { compareSizes, counted, fitItems, readState } from "./state.js";

/** How bright the picture is under strokes. */
const DIMMED = 0.6;

/**
 * What a node shows below its thumbnail.
 * @param {import("./state.js").Kind} kind
 * @param {string} text
 * @param {import("./state.js").Size | null} picture
 * @returns {{text: string, warn: boolean, broken: boolean}}
 */
export function statusOf(kind, text, picture) {
  const { items, size, problem } = readState(kind, text);
  if (problem) return { text: `Cannot be shown: ${problem}. It stays unchanged until you draw or clear.`, warn: true, broken: true };
  if (items.length && picture && compareSizes(size, picture) === "other") {
    return { text: `Drawn on ${size.width} × ${size.height}, the picture is ${picture.width} × ${picture.height}. Open the editor `
                   + "to stretch it or start over.", warn: true, broken: false };
  }
  const about = picture ? `${picture.width} × ${picture.height}` : size ? `drawn on ${size.width} × ${size.height}` : "";
  return { text: [items.length ? counted(kind, items) : "Nothing drawn", about].filter(Boolean).join(" · "), warn: false, broken: false };
}

/**
 * Draw a thumbnail: the picture with the drawing on it.
 * @param {HTMLCanvasElement} canvas
 * @param {import("./state.js").Kind} kind
 * @param {string} text
 * @param {ImageBitmap | null} bitmap
 * @param {number} density canvas pixels a CSS pixel
 * @returns {boolean} whether there was anything to draw
 */
export function paintPreview(canvas, kind, text, bitmap, density) {
  const context = canvas.getContext("2d"), read = readState(kind, text);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  const size = bitmap ?? (read.items.length ? read.size : null);
  if (!size) return false;
  const fit = Math.min(canvas.width / size.width, canvas.height / size.height);
  const width = Math.max(1, Math.round(size.width * fit)), height = Math.max(1, Math.round(size.height * fit));
  const left = Math.round((canvas.width - width) / 2), top = Math.round((canvas.height - height) / 2);
  const scaled = newCanvas(width, height, { willReadFrequently: true }), small = scaled.context;
  small.fillStyle = bitmap ? "#000" : "#808080";
  small.fillRect(0, 0, width, height);
  small.imageSmoothingEnabled = fit < 2;
  small.imageSmoothingQuality = "high";
  small.globalAlpha = kind === "sketch" && read.items.length ? DIMMED : 1;
  if (bitmap) small.drawImage(bitmap, 0, 0, width, height);
  small.globalAlpha = 1;
  const items = fitItems(kind, read.items, read.size ?? size, { width, height });
  if (kind === "sketch" && items.length) paintStrokes(small, items, width, height);
  if (kind === "coarse" && items.length) paintPieces(small, items, width, height, read.state.background);
  context.drawImage(scaled.canvas, left, top);
  if (kind === "drag") paintDrags(context, items, (x, y) => ({ x: x + left, y: y + top }), { size: 0.7 * density });
  return true;
}

function paintStrokes(context, strokes, width, height) {
  const image = context.getImageData(0, 0, width, height), { data } = image;
  drawStrokes(strokes, width, height).forEach((cover, i) => {
    for (let c = i * 4; c < i * 4 + 3; c++) data[c] += (255 - data[c]) * cover / 255;
  });
  context.putImageData(image, 0, 0);
}

function paintPieces(context, pieces, width, height, background) {
  const { window, colour } = placePieces(context.getImageData(0, 0, width, height), pieces, background);
  if (!window) return;
  const image = new ImageData(toBytes(colour), window.right - window.left, window.bottom - window.top);
  context.putImageData(image, window.left, window.top);
}
