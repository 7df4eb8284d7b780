import { bounds, forward, hasArea, placing, simplify } from "../geometry.js";
import { Collage } from "./collage.js";
import { button, group, press } from "./dom.js";
import { contains, corners, cursorOf, dragged, flipped, handleAt, handles, wrapped } from "./frame.js";
import { piecesPanel } from "./pieces_panel.js";

const TOLERANCE = 0.4, SMALLEST = 2, CLICK = 3;
const ACCENT = "#4f9cff", DARK = "#000a", ERASED = "#ff5a4f";
const MODES = [["select", "Select and move", "V"], ["lasso", "Lasso", "L"], ["box", "Box", "M"]];

/** Parts of the picture that are moved, scaled, turned, copied or erased. @param {import("./shell.js").Editor} editor */
export function createCoarse(editor) {
  const { drawing } = editor;
  let mode = "lasso", selected = -1, gesture = null, outline = null, collage = null, stale = true, comparing = false;

  const background = () => drawing.state.background ?? "black";
  const piece = () => drawing.items[selected];
  const select = (index) => {
    selected = index;
    show();
  };
  const choose = (name) => {
    mode = name;
    for (const [other] of MODES) press(buttons[other], other === name);
    editor.stage.style.setProperty("cursor", name === "select" ? "default" : "crosshair");
    editor.render();
  };
  const alter = (change) => {
    if (piece()) editor.change(() => drawing.replace(selected, change(piece())));
    else editor.say("Select a piece first, or draw around one");
  };
  /** Copy and Erase exclude each other: both together would do nothing. */
  const toggle = (flag) => alter((p) => ({ ...p, copy: false, delete: false, [flag]: !p[flag] }));
  const discard = (index = selected) => {
    if (!drawing.items[index]) return editor.say("Select a piece first");
    selected = -1;
    editor.change(() => drawing.remove(index));
  };
  const lift = (index, by) => {
    const items = [...drawing.items], to = index + by;
    if (!items[index] || to < 0 || to >= items.length) return;
    [items[index], items[to]] = [items[to], items[index]];
    selected = to;
    editor.change(() => drawing.commit(items));
  };
  const ground = (name) => editor.change(() => drawing.commit(drawing.items, { background: name }));

  const on = (id, icon, label, key, run, text) => [id, button({ id, icon, label, key, run, text })];
  const buttons = Object.fromEntries([
    ...MODES.map(([name, label, key]) => on(name, name, label, key, () => choose(name))),
    on("flip-h", "flipH", "Flip left and right", "H", () => alter((p) => flipped(p, true))),
    on("flip-v", "flipV", "Flip top and bottom", "J", () => alter((p) => flipped(p, false))),
    on("copy", "copy", "Copy: the original stays", "C", () => toggle("copy"), "Copy"),
    on("erase", "cut", "Erase from the picture", "X", () => toggle("delete"), "Erase"),
    on("black", null, "Leave uncovered areas black, as in training", "", () => ground("black"), "Black"),
    on("fill", null, "Fill uncovered areas from their surroundings", "G", () => ground("fill"), "Fill"),
  ]);
  const side = piecesPanel({ select, lift, discard, set: (values) => alter((p) => ({ ...p, ...values, ...(values.rotate !== undefined
    && { rotate: wrapped(values.rotate) }) })) });

  function show() {
    for (const name of ["flip-h", "flip-v", "copy", "erase"]) buttons[name].disabled = !piece();
    press(buttons.copy, piece()?.copy);
    press(buttons.erase, piece()?.delete);
    press(buttons.black, background() === "black");
    press(buttons.fill, background() === "fill");
    side.show(drawing.items, selected, (p) => collage.cutout(p));
    editor.render();
  }

  /** The pieces as they would be if the gesture ended now. */
  const present = () => (gesture ? drawing.items.map((p, i) => (i === selected ? gesture.piece : p)) : drawing.items);

  function endOutline() {
    const drawn = outline;
    outline = null;
    const points = mode === "box" ? drawn : simplify(drawn, TOLERANCE), box = bounds(points);
    if (points.length < 6 || box.right - box.left < SMALLEST || box.bottom - box.top < SMALLEST) {
      const index = drawing.items.findLastIndex((p) => contains(p, { x: drawn[0], y: drawn[1] }));
      select(index);
      if (index < 0) editor.say("Nothing selected: drag around an area.");
      return;
    }
    selected = drawing.items.length;
    editor.change(() => drawing.add({ outline: points, move: [0, 0], scale: [1, 1], rotate: 0, copy: false, delete: false }));
    choose("select");
  }

  function nudge(dx, dy) {
    alter((p) => ({ ...p, move: [(p.move?.[0] ?? 0) + dx, (p.move?.[1] ?? 0) + dy] }));
  }

  choose(mode);
  return {
    panel: side.panel,
    controls: [group("Select", ...MODES.map(([name]) => buttons[name])),
               group("Piece", buttons["flip-h"], buttons["flip-v"], buttons.copy, buttons.erase),
               group("Background", buttons.black, buttons.fill)],
    keys: [["L, M, V", "Lasso, box, select"], ["Drag inside", "Move (Shift: along one axis)"], ["Corners", "Scale (Shift: freely, Alt: around the centre)"],
           ["Sides", "Scale one axis"], ["Round handle", "Turn (Shift: in steps of 15 degrees)"], ["H, J", "Flip left and right, top and bottom"],
           ["C", "Copy: the original stays"], ["X", "Erase from the picture"], ["G", "Background black or filled"], ["Arrow keys", "Move by a pixel (Shift: ten)"],
           ["N, Shift+N", "Select the next, the previous"], ["PgUp, PgDn", "Bring forward, send back"], ["Del", "Discard the piece"],
           ["O", "Hold to see the original"]],
    tip: () => (piece() ? "Drag to move. Corners scale, sides scale one axis, the round handle turns."
      : mode === "select" ? "Click a piece to select it, or draw around another part with the lasso." : "Draw around what should move."),
    grounded() {
      collage = new Collage(editor.ground);
      stale = true;
    },
    changed() {
      gesture = outline = null;
      selected = Math.min(selected, drawing.items.length - 1);
      stale = true;
      show();
    },
    down(point, event) {
      const touch = event.pointerType === "touch", { zoom } = editor.view;
      const name = piece() && !piece().delete ? handleAt(piece(), point, zoom, touch) : null;
      if (!name && mode !== "select" && !(piece() && contains(piece(), point))) {
        outline = mode === "box" ? [point.x, point.y, point.x, point.y, point.x, point.y, point.x, point.y] : [point.x, point.y];
        selected = -1;
        return;
      }
      if (!name && !(piece() && contains(piece(), point))) select(drawing.items.findLastIndex((p) => contains(p, point)));
      if (!piece()) return false;
      gesture = { name: name ?? "move", from: point, at: [event.clientX, event.clientY], piece: piece(), moved: false };
    },
    move(point, event, points) {
      if (outline && mode === "box") {
        const [x, y] = outline, { x: toX, y: toY } = point;
        outline = [x, y, toX, y, toX, toY, x, toY];
      } else if (outline) {
        outline.push(...points.flatMap((p) => [p.x, p.y]));
      } else if (gesture && !(gesture.name === "move" && piece().delete)) {
        gesture.moved ||= Math.hypot(event.clientX - gesture.at[0], event.clientY - gesture.at[1]) >= CLICK;
        if (gesture.moved) gesture.piece = dragged(piece(), gesture.name, gesture.from, point, event);
      }
      editor.render();
    },
    up(point) {
      if (outline) return endOutline();
      const done = gesture;
      gesture = null;
      if (done?.moved) editor.change(() => drawing.replace(selected, done.piece));
      else if (done?.name === "move") {
        // A click on overlapping pieces goes through to the topmost one.
        const index = drawing.items.findLastIndex((p) => contains(p, point));
        if (index >= 0) select(index);
      }
    },
    cancel() {
      gesture = outline = null;
      editor.render();
    },
    hover(point, event) {
      const name = point && piece() && !piece().delete && handleAt(piece(), point, editor.view.zoom, event.pointerType === "touch");
      const free = mode === "select" ? "default" : "crosshair";
      const over = point && (mode === "select" ? drawing.items.some((p) => contains(p, point)) : piece() && contains(piece(), point));
      editor.stage.style.setProperty("cursor", name ? cursorOf(piece(), name) : over ? "move" : free);
    },
    key(event) {
      const { key, shiftKey } = event, small = key.toLowerCase(), count = drawing.items.length;
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const found = MODES.find(([, , letter]) => letter.toLowerCase() === small);
      if (found) choose(found[0]);
      else if (key === "Delete" || key === "Backspace") discard();
      else if (steps[key] && piece()) nudge(...steps[key].map((v) => v * (shiftKey ? 10 : 1)));
      else if (key === "PageUp" || key === "PageDown") lift(selected, key === "PageUp" ? 1 : -1);
      else if (small === "n" && count) select((selected + (shiftKey ? (selected < 0 ? 0 : -1) : 1) + count) % count);
      else if (small === "g") ground(background() === "fill" ? "black" : "fill");
      else if (small === "o") compare(true);
      else if ({ h: 1, j: 1, c: 1, x: 1 }[small]) buttons[{ h: "flip-h", j: "flip-v", c: "copy", x: "erase" }[small]].click();
      else return false;
      return true;
    },
    keyup: ({ key }) => key.toLowerCase() === "o" && compare(false),
    paint(context) {
      if (comparing) context.drawImage(editor.ground.canvas, 0, 0);
      else if (gesture?.moved) collage.paintMoving(context, present(), background());
      else {
        if (stale) collage.update(drawing.items, background());
        stale = false;
        collage.paint(context);
      }
    },
    marks(context, view) {
      if (!comparing) paintPieces(context, present(), (x, y) => view.toStage(x, y), selected, view.zoom);
      if (outline) trace(context, outline, (x, y) => view.toStage(x, y), [[DARK, 3, []], ["#fff", 1.25, [5, 4]]]);
    },
  };

  function compare(yes) {
    comparing = yes;
    editor.render();
  }
}

function trace(context, points, to, lines) {
  for (const [colour, width, dash] of lines) {
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) {
      const { x, y } = to(points[i], points[i + 1]);
      context.lineTo(x, y);
    }
    context.closePath();
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.stroke();
  }
  context.setLineDash([]);
}

/** Outlines of all pieces, and the frame of the selected one. */
function paintPieces(context, pieces, to, selected, zoom) {
  for (const [index, piece] of pieces.entries()) {
    if (!hasArea(piece)) continue;
    const on = index === selected, colour = piece.delete ? ERASED : on ? ACCENT : "#fff";
    const moved = piece.delete ? piece.outline : forward(placing(piece), piece.outline);
    if (on && !piece.delete) trace(context, piece.outline, to, [["#0006", 2.5, []], ["#fff9", 1, [3, 4]]]);
    trace(context, moved, to, [[DARK, on ? 3.5 : 2.5, []], [colour, on ? 1.75 : 1, on && !piece.delete ? [] : [5, 4]]]);
  }
  const piece = pieces[selected];
  if (!piece || piece.delete) return;
  trace(context, corners(piece), to, [["#0005", 2, []], [ACCENT, 1, []]]);
  const list = handles(piece, zoom), at = (name) => to(...["x", "y"].map((axis) => list.find((h) => h.name === name)[axis]));
  const top = at("n"), turn = at("rotate");
  context.strokeStyle = ACCENT;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(top.x, top.y);
  context.lineTo(turn.x, turn.y);
  context.stroke();
  for (const { name } of list) {
    const { x, y } = at(name);
    context.beginPath();
    if (name === "rotate") context.arc(x, y, 6, 0, 7);
    else context.rect(x - 4.5, y - 4.5, 9, 9);
    context.fillStyle = "#fff";
    context.strokeStyle = "#1b6fe0";
    context.lineWidth = 1.5;
    context.fill();
    context.stroke();
  }
}
