import { backward, bounds, forward, MIN_SCALE, placing } from "../geometry.js";

/**
 * The frame around a selected piece: handles to scale and turn it, and what dragging them does.
 *
 * @typedef {import("../geometry.js").Piece} Piece
 * @typedef {{name: string, x: number, y: number}} Handle in pixels of the ground
 */

const ROTATE_DISTANCE = 30, REACH = 11, TOUCH_REACH = 22, SNAP = 15;
/** Where the handles are on the frame, in halves of its sides. */
const PLACES = { nw: [-1, -1], n: [0, -1], ne: [1, -1], e: [1, 0], se: [1, 1], s: [0, 1], sw: [-1, 1], w: [-1, 0] };

/** Half the outline's sides, at least a little. */
function halves(piece) {
  const box = bounds(piece.outline);
  return [Math.max(0.05, (box.right - box.left) / 2), Math.max(0.05, (box.bottom - box.top) / 2)];
}

/** @returns {Handle[]} eight to scale, one to turn */
export function handles(piece, zoom) {
  const place = placing(piece), [hx, hy] = halves(piece);
  const at = (u, v) => forward(place, [place.mx + u * hx, place.my + v * hy]);
  const list = Object.entries(PLACES).map(([name, [u, v]]) => {
    const [x, y] = at(u, v);
    return { name, x, y };
  });
  const [topX, topY] = at(0, -1), side = Math.sign(place.sy);  // a flipped piece has it on the other side
  const distance = ROTATE_DISTANCE / zoom * side;
  list.push({ name: "rotate", x: topX + place.sin * distance, y: topY - place.cos * distance });
  return list;
}

/** The frame's corners in order. @returns {number[]} */
export function corners(piece) {
  const place = placing(piece), [hx, hy] = halves(piece), { mx, my } = place;
  return forward(place, [mx - hx, my - hy, mx + hx, my - hy, mx + hx, my + hy, mx - hx, my + hy]);
}

/** The handle under a point, or null. */
export function handleAt(piece, point, zoom, touch) {
  const reach = (touch ? TOUCH_REACH : REACH) / zoom;
  let best = null, nearest = reach;
  for (const handle of handles(piece, zoom)) {
    const distance = Math.hypot(handle.x - point.x, handle.y - point.y);
    if (distance <= nearest) [best, nearest] = [handle.name, distance];
  }
  return best;
}

/** The mouse cursor for a handle of a turned piece. */
export function cursorOf(piece, name) {
  if (name === "rotate") return "grab";
  const [u, v] = PLACES[name], { cos, sin, sx, sy } = placing(piece);
  const x = u * Math.sign(sx), y = v * Math.sign(sy);
  const octant = Math.round(Math.atan2(sin * x + cos * y, cos * x - sin * y) / (Math.PI / 4));
  return ["ew-resize", "nwse-resize", "ns-resize", "nesw-resize"][(octant % 4 + 4) % 4];
}

const factor = (value, old) => (Math.abs(value) < MIN_SCALE ? MIN_SCALE * (Math.sign(value) || Math.sign(old)) : value);

/**
 * A piece after a handle was dragged.
 * @param {Piece} piece as it was
 * @param {string} name of the handle, or "move"
 * @param {{x: number, y: number}} from where the handle was taken
 * @param {{x: number, y: number}} to
 * @param {{shiftKey: boolean, altKey: boolean}} keys Shift: corners scale freely, turns snap, moves keep to an axis. Alt: scale
 *   around the middle.
 * @returns {Piece}
 */
export function dragged(piece, name, from, to, keys) {
  const place = placing(piece), { cos, sin, sx, sy, mx, my, dx, dy } = place;
  if (name === "move") {
    let x = to.x - from.x, y = to.y - from.y;
    if (keys.shiftKey) [x, y] = Math.abs(x) > Math.abs(y) ? [x, 0] : [0, y];
    return { ...piece, move: [dx + x, dy + y] };
  }
  if (name === "rotate") {
    const angle = (p) => Math.atan2(p.y - my - dy, p.x - mx - dx) * 180 / Math.PI;
    let rotate = (piece.rotate ?? 0) + angle(to) - angle(from);
    if (keys.shiftKey) rotate = Math.round(rotate / SNAP) * SNAP;
    return { ...piece, rotate: wrapped(rotate) };
  }
  const [u, v] = PLACES[name], [hx, hy] = halves(piece);
  const still = keys.altKey ? [mx, my] : [mx - u * hx, my - v * hy];  // this place of the original stays where it is
  const [stillX, stillY] = forward(place, still), [handleX, handleY] = [mx + u * hx - still[0], my + v * hy - still[1]];
  const shiftX = to.x - from.x, shiftY = to.y - from.y;
  // How far the handle should be from there, in the piece's own directions.
  const wantX = handleX * sx + cos * shiftX + sin * shiftY, wantY = handleY * sy + cos * shiftY - sin * shiftX;
  let scale;
  if (u && v && !keys.shiftKey) {
    const oldX = handleX * sx, oldY = handleY * sy;
    const both = (wantX * oldX + wantY * oldY) / (oldX * oldX + oldY * oldY);
    const least = MIN_SCALE / Math.min(Math.abs(sx), Math.abs(sy));
    const limited = Math.abs(both) < least ? least * (Math.sign(both) || 1) : both;
    scale = [sx * limited, sy * limited];
  } else {
    scale = [u ? factor(wantX / handleX, sx) : sx, v ? factor(wantY / handleY, sy) : sy];
  }
  const [x, y] = [(still[0] - mx) * scale[0], (still[1] - my) * scale[1]];
  return { ...piece, scale, move: [stillX - mx - (cos * x - sin * y), stillY - my - (sin * x + cos * y)] };
}

/** Degrees from -180 to 180. */
export const wrapped = (degrees) => degrees - 360 * Math.round(degrees / 360);

/** A piece mirrored as seen: left and right, or top and bottom. */
export function flipped(piece, horizontally) {
  const [sx, sy] = piece.scale ?? [1, 1];
  return { ...piece, scale: horizontally ? [-sx, sy] : [sx, -sy], rotate: wrapped(-(piece.rotate ?? 0)) };
}

/** Whether a point lies in a piece where it is now; one that is erased is where it was. */
export function contains(piece, point) {
  const [x, y] = piece.delete ? [point.x, point.y] : backward(placing(piece), [point.x, point.y]);
  const { outline } = piece;
  let inside = false;
  for (let i = 0, j = outline.length - 2; i < outline.length; j = i, i += 2) {
    const [x0, y0, x1, y1] = [outline[i], outline[i + 1], outline[j], outline[j + 1]];
    if ((y0 > y) !== (y1 > y) && x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)) inside = !inside;
  }
  return inside;
}
