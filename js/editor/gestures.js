/**
 * Mouse, pen and touch on the stage: one pointer draws, the middle button or the space bar moves the view, two fingers
 * move and zoom it, the wheel zooms.
 */

const LINE_HEIGHT = 16, WHEEL = 0.0016;
const PEN_ERASER = 32;
/** How long after a pen was last seen fingers do nothing. */
const PEN_MS = 500;

/**
 * @param {HTMLElement} stage
 * @param {import("./view.js").View} view
 * @param {{down: Function, move: Function, up: Function, cancel: Function, hover: Function, changed: () => void}} on
 * @param {AbortSignal} signal ends it all
 * @returns {{space: (down: boolean) => void, busy: () => boolean, cancel: () => void}}
 */
export function listen(stage, view, on, signal) {
  const fingers = new Map();
  let mode = null, active = null, last = null, space = false, pen = -Infinity;

  /** Fingers and the palm that lie on the screen while a pen is at work mean nothing. */
  const resting = (event) => event.pointerType === "touch" && event.timeStamp - pen < PEN_MS;

  function penArrives() {
    if (mode === "draw") on.cancel();
    mode = null;
    fingers.clear();
  }

  const point = (event) => ({ ...view.toPicture(event.clientX, event.clientY), eraser: Boolean(event.buttons & PEN_ERASER) });
  const pair = () => {
    const [a, b] = [...fingers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, span: Math.hypot(a.x - b.x, a.y - b.y) || 1 };
  };
  const cursor = () => stage.style.setProperty("cursor", mode === "pan" ? "grabbing" : space ? "grab" : "");

  function begin(event) {
    if (fingers.size === 2) {
      if (mode === "draw") on.cancel();
      mode = "pinch";
      last = pair();
    } else if (event.button === 1 || (space && event.button === 0)) {
      mode = "pan";
      last = { x: event.clientX, y: event.clientY };
    } else if (event.button === 0 || event.button === 5) {
      mode = "draw";
      on.down(point(event), event);
    } else {
      return;
    }
    active = event.pointerId;
  }

  function end(event, lost) {
    if (event.pointerType === "touch" && !fingers.delete(event.pointerId)) return;
    if (mode === "draw" && event.pointerId === active) {
      mode = null;
      if (lost) on.cancel();
      else on.up(point(event), event);
    } else if (mode === "pan" && event.pointerId === active) {
      mode = null;
    } else if (mode === "pinch") {
      // The finger that stays must not start to draw.
      mode = fingers.size ? "rest" : null;
    } else if (!fingers.size) {
      mode = null;
    }
    cursor();
  }

  const add = (type, listener, options = {}) => stage.addEventListener(type, listener, { signal, ...options });
  add("pointerdown", (event) => {
    event.preventDefault();
    if (resting(event)) return;
    stage.setPointerCapture(event.pointerId);
    if (event.pointerType === "pen" && (fingers.size || mode === "rest")) penArrives();
    if (event.pointerType === "pen") pen = event.timeStamp;
    if (event.pointerType === "touch") fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (mode === null || (mode === "draw" && fingers.size === 2)) begin(event);
    cursor();
  });
  add("pointermove", (event) => {
    if (event.pointerType === "pen") pen = event.timeStamp;
    if (resting(event)) return;
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (mode === "draw" && event.pointerId === active) {
      const all = event.getCoalescedEvents?.() ?? [];
      on.move(point(event), event, (all.length ? all : [event]).map(point));
    } else if (mode === "pan" && event.pointerId === active) {
      view.pan(event.clientX - last.x, event.clientY - last.y);
      last = { x: event.clientX, y: event.clientY };
      on.changed();
    } else if (mode === "pinch" && fingers.size >= 2) {
      const now = pair();
      view.pan(now.x - last.x, now.y - last.y);
      view.zoomBy(now.span / last.span, now.x, now.y);
      last = now;
      on.changed();
    } else if (mode === null) {
      on.hover(point(event), event);
    }
  });
  add("pointerup", (event) => end(event, false));
  add("pointercancel", (event) => end(event, true));
  add("pointerleave", (event) => mode === null && on.hover(null, event));
  add("contextmenu", (event) => event.preventDefault());
  add("wheel", (event) => {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? LINE_HEIGHT : 1;
    if (event.shiftKey) view.pan(-(event.deltaX || event.deltaY) * unit, event.deltaX ? -event.deltaY * unit : 0);
    else view.zoomBy(Math.exp(-event.deltaY * unit * WHEEL * (event.ctrlKey ? 6 : 1)), event.clientX, event.clientY);
    on.changed();
    on.hover(point(event), event);
  }, { passive: false });

  return {
    space: (down) => {
      space = down;
      cursor();
    },
    busy: () => mode === "draw",
    cancel: () => {
      if (mode !== "draw") return;
      mode = "rest";
      on.cancel();
    },
  };
}
