import { simplify } from "../geometry.js";
import { button, group, press, slider } from "./dom.js";
import { StrokeLayer } from "./stroke_layer.js";

/** A freehand line keeps within this many pixels of the hand's way; more in pictures above REFERENCE. */
const TOLERANCE = 0.35, REFERENCE = 1024;
const SNAP = Math.PI / 12;
const OPACITY = 60;

/** Brush and eraser. @param {import("./shell.js").Editor} editor */
export function createSketch(editor) {
  const { drawing } = editor;
  let tool = "brush", shape = "freehand", size = 0, opacity = OPACITY;
  let layer, stroke = null;

  // Controls ------------------------------------------------------------------------------------------

  const choose = (kind, value) => {
    if (kind === "tool") tool = value;
    else shape = value;
    for (const name of ["brush", "eraser"]) press(buttons[name], tool === name);
    for (const name of ["freehand", "line"]) press(buttons[name], shape === name);
    editor.render();
  };
  const buttons = Object.fromEntries([
    ["brush", "Brush", "B", "tool"], ["eraser", "Eraser", "E", "tool"], ["freehand", "Freehand", "F", "shape"], ["line", "Straight line", "L", "shape"],
  ].map(([name, label, key, kind]) => [name, button({ icon: name, label, key, id: name, run: () => choose(kind, name) })]));
  const setSize = (value) => {
    size = Math.min(limit(), Math.max(1, Math.round(value * 2) / 2));
    sizes.set(size);
    editor.render();
  };
  const limit = () => Math.max(32, Math.round(Math.max(drawing.ground.width, drawing.ground.height) / 3));
  const sizes = slider({ label: "Size", min: 1, max: 200, step: 0.5, unit: "px", value: 4, change: (v) => (size = v, editor.render()) });
  const seen = slider({ label: "Picture", min: 0, max: 100, unit: "%", value: OPACITY, change: (v) => (opacity = v, editor.render()) });

  // A stroke ------------------------------------------------------------------------------------------

  function extend(points) {
    const old = stroke.points;
    layer.extend({ ...stroke, points: [...old.slice(-2), ...points] });
    old.push(...points);
    editor.render();
  }

  function straight(point, event) {
    const [x, y] = stroke.points;
    let { x: toX, y: toY } = point;
    if (event.shiftKey) {
      const length = Math.hypot(toX - x, toY - y), angle = Math.round(Math.atan2(toY - y, toX - x) / SNAP) * SNAP;
      [toX, toY] = [x + Math.cos(angle) * length, y + Math.sin(angle) * length];
    }
    layer.takeBack();
    stroke.points = [x, y];
    extend([toX, toY]);
  }

  function end() {
    const done = stroke, { width, height } = drawing.ground;
    layer.takeBack();
    stroke = null;
    done.points = simplify(done.points, TOLERANCE * Math.max(1, Math.max(width, height) / REFERENCE));
    editor.change(() => drawing.add(done));
  }

  choose("tool", tool);
  return {
    controls: [group("Tool", buttons.brush, buttons.eraser), group("Shape", buttons.freehand, buttons.line),
               group("Brush", sizes), group("Picture beneath", seen)],
    keys: [["B, E", "Brush, eraser"], ["F, L", "Freehand, straight line"], ["[, ]", "Smaller, larger brush"], ["Shift", "Line in steps of 15 degrees"],
           ["P", "Show or hide the picture"]],
    tip: () => (tool === "eraser" ? "Drag to erase." : "Draw the outline of what changes, at the place and in the shape it should have after the edit."),
    grounded() {
      const { width, height } = drawing.ground;
      layer = new StrokeLayer(drawing.ground);
      for (const field of sizes.querySelectorAll("input")) field.max = limit();
      setSize(size || drawing.items.at(-1)?.size || Math.max(2, Math.max(width, height) / 150));
    },
    changed: () => layer.update(drawing.items),
    down(point) {
      stroke = { tool: point.eraser ? "eraser" : tool, size, points: [point.x, point.y] };
      layer.extend(stroke);
      editor.render();
    },
    move(point, event, points) {
      if (shape === "line") straight(point, event);
      else extend(points.flatMap(({ x, y }) => [x, y]));
    },
    up: end,
    cancel() {
      layer.takeBack();
      stroke = null;
    },
    hover: () => editor.renderMarks(),
    key({ key, shiftKey }) {
      const small = key.toLowerCase(), step = Math.max(0.5, Math.round(size / 8)) * (shiftKey ? 2 : 1);
      if (small === "b" || small === "e") choose("tool", small === "b" ? "brush" : "eraser");
      else if (small === "f" || small === "l") choose("shape", small === "f" ? "freehand" : "line");
      else if (key === "[" || key === "{") setSize(size - step);
      else if (key === "]" || key === "}") setSize(size + step);
      else if (small === "p") seen.set(opacity = opacity ? 0 : OPACITY);
      else return false;
      editor.render();
      return true;
    },
    paint(context) {
      const { width, height } = drawing.ground;
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      context.globalAlpha = opacity / 100;
      context.drawImage(editor.ground.canvas, 0, 0);
      context.globalAlpha = 1;
      context.drawImage(layer.canvas, 0, 0);
    },
    marks(context, view) {
      const { pointer } = editor;
      if (!pointer) return;
      const { x, y } = view.toStage(pointer.x, pointer.y), radius = Math.max(1.5, size / 2 * view.zoom);
      for (const [colour, width] of [["#000a", 3], [tool === "eraser" ? "#ff9d9d" : "#fff", 1.25]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.stroke();
      }
    },
  };
}
