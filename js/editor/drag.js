import { button, group } from "./dom.js";

const HANDLE = 9, REACH = 13, TOUCH_REACH = 24, SHAFT_REACH = 6;
/** Shorter drags, in pixels of the stage, count as clicks. */
const CLICK = 3;
const MANY = 500;
const SOURCE = "#ff5a4f", TARGET = "#2fd07a", LINE = "#fff", DARK = "#000b";

/** Arrows from where something is to where it should go. @param {import("./shell.js").Editor} editor */
export function createDrag(editor) {
  const { drawing } = editor;
  let selected = -1, gesture = null, hovered = null;

  const remove = button({ icon: "trash", text: "Delete drag", label: "Delete the selected drag", key: "Del", id: "delete", run: () => drop() });
  const select = (index) => {
    selected = index;
    remove.disabled = index < 0;
    editor.render();
  };
  const inside = ({ x, y }) => ({ x: Math.min(drawing.ground.width, Math.max(0, x)), y: Math.min(drawing.ground.height, Math.max(0, y)) });
  const within = ({ x, y }) => x >= 0 && y >= 0 && x <= drawing.ground.width && y <= drawing.ground.height;

  function drop() {
    if (selected < 0) return editor.say("Click a drag first to select it");
    const index = selected;
    selected = Math.min(index, drawing.items.length - 2);
    editor.change(() => drawing.remove(index));
  }

  /** The handle under a point: [drag, 0 source or 2 target]; the selected drag's first, then the topmost. */
  function handleAt(point, touch) {
    const reach = (touch ? TOUCH_REACH : REACH) / editor.view.zoom;
    let best = null, nearest = reach;
    drawing.items.forEach((drag, index) => {
      for (const end of [0, 2]) {
        const distance = Math.hypot(drag[end] - point.x, drag[end + 1] - point.y) - (index === selected ? 1e-3 : 0);
        if (distance <= nearest) [best, nearest] = [{ index, end }, distance];
      }
    });
    return best;
  }

  function shaftAt(point) {
    const reach = SHAFT_REACH / editor.view.zoom;
    return drawing.items.findLastIndex(([x0, y0, x1, y1]) => {
      const run = x1 - x0, rise = y1 - y0;
      const along = Math.min(1, Math.max(0, ((point.x - x0) * run + (point.y - y0) * rise) / (run * run + rise * rise || 1)));
      return Math.hypot(point.x - x0 - along * run, point.y - y0 - along * rise) <= reach;
    });
  }

  /** The drags as they would be if the gesture ended now. */
  function present() {
    if (!gesture) return drawing.items;
    const { index, end, point, whole, start } = gesture;
    if (index < 0) return [...drawing.items, [start.x, start.y, point.x, point.y]];
    return drawing.items.map((drag, i) => {
      if (i !== index) return drag;
      if (!whole) return drag.with(end, point.x).with(end + 1, point.y);
      return shift(drag, point.x - start.x, point.y - start.y);
    });
  }

  /** A whole drag moved, as far as it stays inside. */
  function shift(drag, dx, dy) {
    const { width, height } = drawing.ground;
    const keep = (move, a, b, size) => Math.min(size - Math.max(a, b), Math.max(-Math.min(a, b), move));
    const x = keep(dx, drag[0], drag[2], width), y = keep(dy, drag[1], drag[3], height);
    return drag.map((v, i) => v + (i % 2 ? y : x));
  }

  function nudge(dx, dy) {
    const drag = drawing.items[selected], to = inside({ x: drag[2] + dx, y: drag[3] + dy });
    if (to.x === drag[0] && to.y === drag[1]) return;
    editor.change(() => drawing.replace(selected, [drag[0], drag[1], to.x, to.y]));
  }

  return {
    controls: [group("Drag", remove)],
    keys: [["Drag", "New arrow: press where something is, release where it should go"], ["Drag a handle", "Move an end"],
           ["Alt + drag a line", "Move a whole arrow"], ["Del", "Delete the selected arrow"], ["Arrow keys", "Move the target by a pixel (Shift: ten)"],
           ["N, Shift+N", "Select the next, the previous"]],
    tip: () => (drawing.items.length ? "Drag handles to move them. Red: where it is. Green: where it goes."
                                     : "Press on what should move and drag it to where it should go."),
    warning: () => (drawing.items.length > MANY
      ? `${drawing.items.length} drags: more than ${MANY} cost time and hardly help, because several fall on the same token of the network.` : ""),
    grounded: () => {},
    changed: () => select(Math.min(selected, drawing.items.length - 1)),
    down(raw, event) {
      const handle = handleAt(raw, event.pointerType === "touch"), shaft = event.altKey ? shaftAt(raw) : -1;
      if (!handle && shaft < 0 && !within(raw)) {
        select(-1);
        return false;
      }
      const start = inside(raw);
      gesture = { index: -1, end: 2, start, point: start, from: [event.clientX, event.clientY], moved: false, whole: false };
      if (handle) Object.assign(gesture, handle, { point: null });
      else if (shaft >= 0) Object.assign(gesture, { index: shaft, whole: true });
      if (gesture.index >= 0) {
        const drag = drawing.items[gesture.index];
        if (handle) gesture.point = { x: drag[handle.end], y: drag[handle.end + 1] };
        // The handle keeps its distance to the pointer that took it.
        gesture.grip = { x: gesture.point.x - raw.x, y: gesture.point.y - raw.y };
        select(gesture.index);
      }
      editor.render();
    },
    move(raw, event) {
      gesture.moved ||= Math.hypot(event.clientX - gesture.from[0], event.clientY - gesture.from[1]) >= CLICK;
      const { grip = { x: 0, y: 0 } } = gesture;
      if (gesture.moved) gesture.point = inside({ x: raw.x + grip.x, y: raw.y + grip.y });
      editor.renderMarks();
    },
    up(raw) {
      const { index, moved } = gesture, next = present(), made = next.at(index < 0 ? -1 : index).map((v) => Math.round(v * 10) / 10);
      gesture = null;
      if (index < 0 && !moved) {
        const shaft = shaftAt(raw);
        select(shaft);
        if (shaft < 0) editor.say("Nothing added: a drag needs a start and another end. Press, move, release.");
      } else if (moved && made[0] === made[2] && made[1] === made[3]) {
        editor.say("Not changed: a drag may not end where it starts.");
      } else if (moved) {
        selected = index < 0 ? drawing.items.length : index;
        editor.change(() => drawing.commit(next));
        if (drawing.items.length === MANY + 1) editor.say(`More than ${MANY} drags: this will be slow.`);
      }
    },
    cancel() {
      gesture = null;
      editor.render();
    },
    hover(point, event) {
      hovered = point && handleAt(point, event.pointerType === "touch");
      editor.stage.style.setProperty("cursor", hovered ? "move" : "crosshair");
      editor.renderMarks();
    },
    key(event) {
      const { key, shiftKey } = event, steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const count = drawing.items.length;
      if (key === "Delete" || key === "Backspace") drop();
      else if (steps[key] && selected >= 0) nudge(...steps[key].map((v) => v * (shiftKey ? 10 : 1)));
      else if (key.toLowerCase() === "n" && count) select((selected + (shiftKey ? (selected < 0 ? 0 : -1) : 1) + count) % count);
      else return false;
      return true;
    },
    paint: (context) => context.drawImage(editor.ground.canvas, 0, 0),
    marks(context, view) {
      const to = (x, y) => view.toStage(x, y);
      paintDrags(context, present(), to, { selected: gesture?.index === -1 ? drawing.items.length : selected, hovered });
    },
  };
}

/**
 * Draw numbered arrows.
 * @param {CanvasRenderingContext2D} context
 * @param {number[][]} drags
 * @param {(x: number, y: number) => {x: number, y: number}} to from pixels of the picture to those of the context
 * @param {{selected?: number, hovered?: {index: number, end: number} | null, size?: number}} [options] size: of everything, 1 the usual
 */
export function paintDrags(context, drags, to, { selected = -1, hovered = null, size = 1 } = {}) {
  const disc = (at, radius, fill, edge, width) => {
    context.beginPath();
    context.arc(at.x, at.y, radius, 0, 7);
    context.fillStyle = fill;
    context.fill();
    context.strokeStyle = edge;
    context.lineWidth = width;
    context.stroke();
  };
  context.lineCap = context.lineJoin = "round";
  for (const [index, drag] of drags.entries()) {
    const a = to(drag[0], drag[1]), b = to(drag[2], drag[3]), length = Math.hypot(b.x - a.x, b.y - a.y) || 1;
    const ux = (b.x - a.x) / length, uy = (b.y - a.y) / length, head = Math.min(13 * size, length * 0.6), on = index === selected;
    const tip = { x: b.x - ux * 5 * size, y: b.y - uy * 5 * size };
    for (const [colour, width] of [[DARK, 6 * size], [on ? "#7db4ff" : LINE, 2.5 * size]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(a.x, a.y);
      context.lineTo(tip.x, tip.y);
      context.moveTo(tip.x - ux * head + uy * head * 0.55, tip.y - uy * head - ux * head * 0.55);
      context.lineTo(tip.x, tip.y);
      context.lineTo(tip.x - ux * head - uy * head * 0.55, tip.y - uy * head + ux * head * 0.55);
      context.stroke();
    }
    const grow = (end) => (hovered?.index === index && hovered.end === end ? 1.25 : 1) * size;
    disc(b, 5 * grow(2), TARGET, on ? "#fff" : DARK, 1.75 * size);
    disc(a, HANDLE * grow(0), SOURCE, on ? "#fff" : DARK, 1.75 * size);
    context.fillStyle = "#fff";
    context.font = `700 ${(index < 99 ? 11 : 8) * size}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(String(index + 1), a.x, a.y + 0.5 * size);
  }
}
