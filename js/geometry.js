/**
 * What the editors' states look like as pixels: the formulas of docs/editor_state.md, without any page.
 * Python computes the same in core/signals/strokes.py and core/signals/pieces.py; tests compare the two.
 *
 * Coordinates are pixels, (0, 0) the picture's upper left corner; the middle of pixel (column i, row j) is (i + 0.5, j + 0.5).
 *
 * @typedef {{left: number, top: number, right: number, bottom: number}} Window whole pixels; right and bottom not included
 * @typedef {{tool: string, size: number, points: number[]}} Stroke
 * @typedef {{outline: number[], move?: number[], scale?: number[], rotate?: number, copy?: boolean, delete?: boolean}} Piece
 * @typedef {{width: number, height: number, data: Uint8ClampedArray}} Pixels four bytes a pixel, as ImageData
 */

/** Lines are cut into parts of this length, so that a diagonal does not touch all pixels between its ends. */
const PART = 64;
/** No factor of a piece's scale is smaller. */
export const MIN_SCALE = 0.01;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** @returns {Window} all of a picture */
export const whole = (width, height) => ({ left: 0, top: 0, right: width, bottom: height });

/** @returns {Window} what two windows share; empty ones have right <= left or bottom <= top */
export const common = (a, b) => ({
  left: Math.max(a.left, b.left), top: Math.max(a.top, b.top),
  right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom),
});

/** @returns {Window} the smallest window around two; null counts as nothing */
export function around(a, b) {
  if (!a || !b) return a ?? b;
  return {
    left: Math.min(a.left, b.left), top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
  };
}

export const isEmpty = (w) => w.right <= w.left || w.bottom <= w.top;

/** Smallest and largest coordinates of points x, y, x, y ... */
export function bounds(points) {
  let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
  for (let i = 0; i < points.length; i += 2) {
    left = Math.min(left, points[i]);
    right = Math.max(right, points[i]);
    top = Math.min(top, points[i + 1]);
    bottom = Math.max(bottom, points[i + 1]);
  }
  return { left, top, right, bottom };
}

/** @returns {Window} pixels that points can touch which reach `margin` far */
export function windowOf(points, margin, width, height) {
  const box = bounds(points);
  return common(whole(width, height), {
    left: Math.floor(box.left - margin), top: Math.floor(box.top - margin),
    right: Math.ceil(box.right + margin), bottom: Math.ceil(box.bottom + margin),
  });
}

/** Call visit(column, row, distance) for pixels of a window around a straight line; some twice, as the line is cut up. */
function nearLine(x0, y0, x1, y1, reach, window, visit) {
  const margin = reach + 1;
  let from = 0, to = 1;  // the part of the line that passes the window (Liang and Barsky 1984)
  for (const [start, step, low, high] of [[x0, x1 - x0, window.left - margin, window.right + margin],
                                          [y0, y1 - y0, window.top - margin, window.bottom + margin]]) {
    if (step === 0) {
      if (start < low || start > high) return;
    } else {
      const a = (low - start) / step, b = (high - start) / step;
      from = Math.max(from, Math.min(a, b));
      to = Math.min(to, Math.max(a, b));
    }
  }
  if (from > to) return;
  const length = Math.hypot(x1 - x0, y1 - y0) * (to - from);
  const count = Math.max(1, Math.ceil(length / Math.max(PART, reach)));
  for (let part = 0; part < count; part++) {
    const start = from + (to - from) * part / count, end = from + (to - from) * (part + 1) / count;
    const px = x0 + (x1 - x0) * start, py = y0 + (y1 - y0) * start;
    const run = (x1 - x0) * (end - start), rise = (y1 - y0) * (end - start), square = run * run + rise * rise;
    const left = Math.max(window.left, Math.floor(Math.min(px, px + run) - reach - 0.5));
    const right = Math.min(window.right, Math.ceil(Math.max(px, px + run) + reach + 0.5));
    const top = Math.max(window.top, Math.floor(Math.min(py, py + rise) - reach - 0.5));
    const bottom = Math.min(window.bottom, Math.ceil(Math.max(py, py + rise) + reach + 0.5));
    for (let row = top; row < bottom; row++) {
      const y = row + 0.5 - py;
      for (let column = left; column < right; column++) {
        const x = column + 0.5 - px;
        const along = square > 0 ? clamp((x * run + y * rise) / square, 0, 1) : 0;
        const dx = x - along * run, dy = y - along * rise;
        visit(column, row, Math.sqrt(dx * dx + dy * dy));
      }
    }
  }
}

/**
 * Draw one stroke, in place. Rows of pixels that it covers whole are filled at once; only its edges are computed.
 * @param {Uint8Array} cover width x height, 0 to 255
 * @param {Stroke} stroke in pixels of this picture
 * @param {Window} window touch only this
 */
export function drawStroke(cover, width, stroke, window) {
  const { points, size } = stroke, brush = stroke.tool !== "eraser";
  if (isEmpty(window)) return;
  if (points.length === 2) drawCapsule(cover, width, points[0], points[1], points[0], points[1], size / 2 + 0.5, brush, window);
  for (let i = 2; i < points.length; i += 2) {
    drawCapsule(cover, width, points[i - 2], points[i - 1], points[i], points[i + 1], size / 2 + 0.5, brush, window);
  }
}

/** All pixels whose middle is nearer than `edge` to a straight line; those nearer than edge - 1 are covered whole. */
function drawCapsule(cover, width, ax, ay, bx, by, edge, brush, window) {
  const run = bx - ax, rise = by - ay, square = run * run + rise * rise, length = Math.sqrt(square);
  const top = Math.max(window.top, Math.floor(Math.min(ay, by) - edge)), bottom = Math.min(window.bottom, Math.ceil(Math.max(ay, by) + edge));
  const [low, high] = [window.left, window.right];
  const outer = { left: 0, right: 0 }, inner = { left: 0, right: 0 };
  for (let row = top; row < bottom; row++) {
    const y = row + 0.5;
    if (!spanOf(outer, y, ax, ay, bx, by, run, rise, length, edge)) continue;
    const first = Math.max(low, Math.floor(outer.left - 0.5)), last = Math.min(high, Math.ceil(outer.right + 0.5)), at = row * width;
    let from = last, to = last;  // what is covered whole
    if (edge > 1 && spanOf(inner, y, ax, ay, bx, by, run, rise, length, edge - 1)) {
      from = clamp(Math.ceil(inner.left), first, last);
      to = clamp(Math.floor(inner.right), from, last);
      cover.fill(brush ? 255 : 0, at + from, at + to);
    }
    for (let column = first; column < last; column++) {
      if (column === from && to > from) column = to;
      if (column >= last) break;
      const x = column + 0.5 - ax, v = y - ay, along = square > 0 ? clamp((x * run + v * rise) / square, 0, 1) : 0;
      const dx = x - along * run, dy = v - along * rise, c = Math.round(255 * clamp(edge - Math.sqrt(dx * dx + dy * dy), 0, 1));
      if (brush ? c > cover[at + column] : 255 - c < cover[at + column]) cover[at + column] = brush ? c : 255 - c;
    }
  }
}

/**
 * The part of a row that is nearer than a radius to a straight line: between what the circles around its ends and its two parallels
 * cut out of the row. @returns {boolean} whether there is any
 */
function spanOf(out, y, ax, ay, bx, by, run, rise, length, radius) {
  let left = Infinity, right = -Infinity;
  for (let end = 0; end < 2; end++) {
    const away = y - (end ? by : ay), rest = radius * radius - away * away;
    if (rest < 0) continue;
    const half = Math.sqrt(rest), middle = end ? bx : ax;
    left = Math.min(left, middle - half);
    right = Math.max(right, middle + half);
  }
  if (rise !== 0) {
    for (let side = -1; side <= 1; side += 2) {
      const x = ax - side * rise / length * radius, share = (y - ay - side * run / length * radius) / rise;
      if (share < 0 || share > 1) continue;
      left = Math.min(left, x + share * run);
      right = Math.max(right, x + share * run);
    }
  }
  out.left = left;
  out.right = right;
  return left <= right;
}

/**
 * Draw strokes in their order.
 * @param {Stroke[]} strokes in pixels of this picture
 * @param {Uint8Array} [cover] drawn into, if given; what it holds inside the window is lost
 * @param {Window} [window] touch only this
 * @returns {Uint8Array} width x height, 255 on strokes
 */
export function drawStrokes(strokes, width, height, cover = new Uint8Array(width * height), window = whole(width, height)) {
  for (let row = window.top; row < window.bottom; row++) {
    cover.fill(0, row * width + window.left, row * width + Math.max(window.left, window.right));
  }
  for (const stroke of strokes) drawStroke(cover, width, stroke, window);
  return cover;
}

/** @returns {Window} the pixels that a stroke can change */
export const strokeWindow = (stroke, width, height) => windowOf(stroke.points, stroke.size / 2 + 1, width, height);

/**
 * How far a closed polygon covers pixels, even-odd rule, edges one pixel soft.
 * @param {number[]} outline x, y, x, y ...
 * @returns {{window: Window, cover: Float32Array}} coverage of the pixels of the window, row by row
 */
export function coverPolygon(outline, width, height) {
  const window = windowOf(outline, 0.5, width, height);
  const w = Math.max(0, window.right - window.left), h = Math.max(0, window.bottom - window.top);
  const cover = new Float32Array(w * h).fill(1);  // first the distance to the border: further than 0.5 does not matter
  if (!cover.length) return { window, cover };
  const flips = new Uint32Array((w + 1) * h);  // an edge flips all pixels to its left; the last column is for "all"
  for (let i = 0; i < outline.length; i += 2) {
    const x0 = outline[i] - window.left, y0 = outline[i + 1] - window.top, next = (i + 2) % outline.length;
    const x1 = outline[next] - window.left, y1 = outline[next + 1] - window.top;
    const last = clamp(Math.ceil(Math.max(y0, y1) - 0.5), 0, h);
    for (let row = clamp(Math.ceil(Math.min(y0, y1) - 0.5), 0, h); row < last; row++) {
      const cross = x0 + (row + 0.5 - y0) / (y1 - y0) * (x1 - x0);
      flips[row * (w + 1) + clamp(Math.ceil(cross - 0.5), 0, w)]++;
    }
    nearLine(x0, y0, x1, y1, 0.5, whole(w, h), (column, row, distance) => {
      const at = row * w + column;
      cover[at] = Math.min(cover[at], distance);
    });
  }
  for (let row = 0; row < h; row++) {
    let count = flips[row * (w + 1) + w];
    for (let column = w - 1; column >= 0; column--) {
      // A flip at column k counts for the columns before it.
      const at = row * w + column;
      cover[at] = clamp(count % 2 ? 0.5 + cover[at] : 0.5 - cover[at], 0, 1);
      count += flips[row * (w + 1) + column];
    }
  }
  return { window, cover };
}

/**
 * A piece's place: its turn, factors and the point that stays when it turns.
 * @param {Piece} piece
 * @returns {{cos: number, sin: number, sx: number, sy: number, mx: number, my: number, dx: number, dy: number}}
 */
export function placing(piece) {
  const rotate = piece.rotate ?? 0, [sx, sy] = piece.scale ?? [1, 1], [dx, dy] = piece.move ?? [0, 0];
  let cos = Math.cos(rotate * Math.PI / 180), sin = Math.sin(rotate * Math.PI / 180);
  if (rotate % 90 === 0) {  // quarter turns are exact, as pixels then land on pixels
    [cos, sin] = [[1, 0], [0, 1], [-1, 0], [0, -1]][((rotate / 90) % 4 + 4) % 4];
  }
  const box = bounds(piece.outline);
  return { cos, sin, sx, sy, mx: (box.left + box.right) / 2, my: (box.top + box.bottom) / 2, dx, dy };
}

/** Where points of the original go. @returns {number[]} */
export function forward(place, points) {
  const { cos, sin, sx, sy, mx, my, dx, dy } = place, out = new Array(points.length);
  for (let i = 0; i < points.length; i += 2) {
    const x = (points[i] - mx) * sx, y = (points[i + 1] - my) * sy;
    out[i] = mx + dx + cos * x - sin * y;
    out[i + 1] = my + dy + sin * x + cos * y;
  }
  return out;
}

/** Where points come from. @returns {number[]} */
export function backward(place, points) {
  const { cos, sin, sx, sy, mx, my, dx, dy } = place, out = new Array(points.length);
  for (let i = 0; i < points.length; i += 2) {
    const x = points[i] - mx - dx, y = points[i + 1] - my - dy;
    out[i] = mx + (cos * x + sin * y) / sx;
    out[i + 1] = my + (cos * y - sin * x) / sy;
  }
  return out;
}

/** Whether a piece has any area. */
export function hasArea(piece) {
  const box = bounds(piece.outline);
  return box.right > box.left && box.bottom > box.top;
}

/**
 * The first step of a coarse edit: the picture with holes.
 * @param {Pixels} image
 * @param {Piece[]} pieces in pixels of this picture
 * @param {string} background black or fill
 * @returns {{window: Window | null, uncovered: Float32Array, colour: Float32Array}} what is inside the window; null if
 *   nothing is left behind. Colours are three numbers a pixel, 0 to 255.
 */
export function cutPieces(image, pieces, background) {
  const { width, height, data } = image;
  const covers = pieces.filter((p) => !p.copy && hasArea(p)).map((p) => coverPolygon(p.outline, width, height))
    .filter(({ window }) => !isEmpty(window));
  const window = covers.reduce((all, { window }) => around(all, window), null);
  if (!window) return { window, uncovered: new Float32Array(0), colour: new Float32Array(0) };
  const w = window.right - window.left, h = window.bottom - window.top;
  const uncovered = new Float32Array(w * h);
  for (const { window: part, cover } of covers) {
    eachPixel(part, (x, y, i) => {
      const at = (y - window.top) * w + x - window.left;
      uncovered[at] = Math.max(uncovered[at], cover[i]);
    });
  }
  const ground = background === "fill" ? fill(image, window, uncovered) : null;
  const colour = new Float32Array(w * h * 3);
  eachPixel(window, (x, y, i) => {
    for (let c = 0; c < 3; c++) {
      colour[i * 3 + c] = data[(y * width + x) * 4 + c] * (1 - uncovered[i]) + (ground ? ground[i * 3 + c] * uncovered[i] : 0);
    }
  });
  return { window, uncovered, colour };
}

/**
 * Move, copy and remove pieces of a picture.
 * @param {Pixels} image
 * @param {Piece[]} pieces in pixels of this picture
 * @param {string} background black or fill
 * @param {ReturnType<typeof cutPieces>} [cut] the first step, if known
 * @returns {{window: Window | null, colour: Float32Array, uncovered: Float32Array, placed: Float32Array}} what is inside
 *   the window, the smallest that holds all changes; null if there are none
 */
export function placePieces(image, pieces, background, cut = cutPieces(image, pieces, background)) {
  const { width, height, data } = image;
  const laid = pieces.filter((p) => !p.delete && hasArea(p)).map((piece) => {
    const place = placing(piece);
    return { place, ...coverPolygon(forward(place, piece.outline), width, height) };
  }).filter(({ window }) => !isEmpty(window));
  const window = laid.reduce((all, { window }) => around(all, window), cut.window);
  const w = window ? window.right - window.left : 0, h = window ? window.bottom - window.top : 0;
  const colour = new Float32Array(w * h * 3), uncovered = new Float32Array(w * h), placed = new Float32Array(w * h);
  if (!window) return { window, colour, uncovered, placed };
  eachPixel(window, (x, y, i) => {
    for (let c = 0; c < 3; c++) colour[i * 3 + c] = data[(y * width + x) * 4 + c];
  });
  if (cut.window) {
    eachPixel(cut.window, (x, y, i) => {
      const at = (y - window.top) * w + x - window.left;
      uncovered[at] = cut.uncovered[i];
      for (let c = 0; c < 3; c++) colour[at * 3 + c] = cut.colour[i * 3 + c];
    });
  }
  for (const { place, window: part, cover } of laid) {
    const { cos, sin, sx, sy, mx, my, dx, dy } = place;
    eachPixel(part, (x, y, i) => {
      const weight = cover[i];
      if (weight === 0) return;
      const u = x + 0.5 - mx - dx, v = y + 0.5 - my - dy;
      const fromX = clamp((cos * u + sin * v) / sx + mx - 0.5, 0, width - 1);
      const fromY = clamp((cos * v - sin * u) / sy + my - 0.5, 0, height - 1);
      const left = Math.floor(fromX), top = Math.floor(fromY), shareX = fromX - left, shareY = fromY - top;
      const a = (top * width + left) * 4, right = left + 1 < width ? 4 : 0, below = top + 1 < height ? width * 4 : 0;
      const at = (y - window.top) * w + x - window.left;
      for (let c = 0; c < 3; c++) {
        const upper = data[a + c] * (1 - shareX) + data[a + right + c] * shareX;
        const lower = data[a + below + c] * (1 - shareX) + data[a + below + right + c] * shareX;
        colour[at * 3 + c] = colour[at * 3 + c] * (1 - weight) + (upper * (1 - shareY) + lower * shareY) * weight;
      }
      uncovered[at] *= 1 - weight;
      placed[at] = Math.max(placed[at], weight);
    });
  }
  return { window, colour, uncovered, placed };
}

/** Colours of a window as bytes, for ImageData. @returns {Uint8ClampedArray} */
export function toBytes(colour) {
  const count = colour.length / 3, out = new Uint8ClampedArray(count * 4);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) out[i * 4 + c] = colour[i * 3 + c];
    out[i * 4 + 3] = 255;
  }
  return out;
}

function eachPixel(window, visit) {
  let i = 0;
  for (let y = window.top; y < window.bottom; y++) {
    for (let x = window.left; x < window.right; x++) visit(x, y, i++);
  }
}

/**
 * Close an area from its surroundings: weighted means in blocks of 2 x 2 up to one pixel, and back down.
 * @param {Pixels} image
 * @param {Window} window where anything is uncovered
 * @param {Float32Array} uncovered of the window's pixels
 * @returns {Float32Array} colours of the window's pixels
 */
export function fill(image, window, uncovered) {
  const { width, height, data } = image, w = window.right - window.left;
  const weightAt = (x, y) => (x < window.left || y < window.top || x >= window.right || y >= window.bottom
    ? 1 : 1 - uncovered[(y - window.top) * w + x - window.left]);
  const colourAt = (x, y, c) => data[(y * width + x) * 4 + c];
  // The picture itself is not copied; the levels above it take a third of its size.
  const levels = [{ width, height, weightAt, colourAt }];
  while (levels.at(-1).width > 1 || levels.at(-1).height > 1) levels.push(halve(levels.at(-1)));
  let below = levels.at(-1);
  for (const level of levels.slice(0, -1).reverse()) {
    const first = level === levels[0];
    below = enlarge(below, level, first ? window : whole(level.width, level.height));
  }
  return below.colour ?? Float32Array.from([0, 1, 2], (c) => colourAt(0, 0, c));
}

function halve(level) {
  const width = Math.ceil(level.width / 2), height = Math.ceil(level.height / 2);
  const colour = new Float32Array(width * height * 3), weight = new Float32Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const endX = Math.min(2 * x + 2, level.width), endY = Math.min(2 * y + 2, level.height);
      let total = 0, r = 0, g = 0, b = 0, count = 0;
      for (let v = 2 * y; v < endY; v++) {
        for (let u = 2 * x; u < endX; u++, count++) {
          const part = level.weightAt(u, v);
          total += part;
          r += part * level.colourAt(u, v, 0);
          g += part * level.colourAt(u, v, 1);
          b += part * level.colourAt(u, v, 2);
        }
      }
      weight[at] = total / count;
      if (total > 0) colour.set([r / total, g / total, b / total], at * 3);
    }
  }
  return { width, height, colour, weightAt: (x, y) => weight[y * width + x],
           colourAt: (x, y, c) => colour[(y * width + x) * 3 + c] };
}

/** A level's own colours by their weight, the rest from the one below it, enlarged by two. */
function enlarge(below, level, window) {
  const colour = new Float32Array((window.right - window.left) * (window.bottom - window.top) * 3);
  eachPixel(window, (x, y, i) => {
    const weight = level.weightAt(x, y);
    const fromX = Math.max(0, (x + 0.5) / 2 - 0.5), fromY = Math.max(0, (y + 0.5) / 2 - 0.5);
    const left = Math.floor(fromX), top = Math.floor(fromY), shareX = fromX - left, shareY = fromY - top;
    const right = Math.min(left + 1, below.width - 1), bottom = Math.min(top + 1, below.height - 1);
    for (let c = 0; c < 3; c++) {
      const upper = below.colourAt(left, top, c) * (1 - shareX) + below.colourAt(right, top, c) * shareX;
      const lower = below.colourAt(left, bottom, c) * (1 - shareX) + below.colourAt(right, bottom, c) * shareX;
      colour[i * 3 + c] = level.colourAt(x, y, c) * weight + (upper * (1 - shareY) + lower * shareY) * (1 - weight);
    }
  });
  return { width: level.width, height: level.height, colour,
           colourAt: (x, y, c) => colour[(y * level.width + x) * 3 + c] };
}

/**
 * Leave out points that lie within `tolerance` of the line through the others (Douglas and Peucker 1973).
 * @param {number[]} points x, y, x, y ...
 * @returns {number[]}
 */
export function simplify(points, tolerance) {
  const count = points.length / 2;
  if (count < 3) return [...points];
  const keep = new Uint8Array(count);
  keep[0] = keep[count - 1] = 1;
  const open = [[0, count - 1]];
  while (open.length) {
    const [first, last] = open.pop();
    const x0 = points[first * 2], y0 = points[first * 2 + 1];
    const run = points[last * 2] - x0, rise = points[last * 2 + 1] - y0, square = run * run + rise * rise;
    let worst = tolerance, at = -1;
    for (let i = first + 1; i < last; i++) {
      const x = points[i * 2] - x0, y = points[i * 2 + 1] - y0;
      const along = square > 0 ? clamp((x * run + y * rise) / square, 0, 1) : 0;
      const distance = Math.hypot(x - along * run, y - along * rise);
      if (distance > worst) [worst, at] = [distance, i];
    }
    if (at >= 0) {
      keep[at] = 1;
      open.push([first, at], [at, last]);
    }
  }
  return points.filter((_, i) => keep[i >> 1]);
}
