const SMALLEST = 0.02, LARGEST = 64, MARGIN = 28;

/** Where the ground lies on the stage: zoom and offset, in CSS pixels. */
export class View {
  /** @param {HTMLElement} stage */
  constructor(stage) {
    this.stage = stage;
    this.size = { width: 1, height: 1 };
    this.zoom = 1;
    this.x = this.y = 0;
    this.fitted = true;
  }

  /** A point of the page in pixels of the ground. @returns {{x: number, y: number}} */
  toPicture(clientX, clientY) {
    const box = this.stage.getBoundingClientRect();
    return { x: (clientX - box.left - this.x) / this.zoom, y: (clientY - box.top - this.y) / this.zoom };
  }

  /** A point of the ground in CSS pixels of the stage. */
  toStage(x, y) {
    return { x: x * this.zoom + this.x, y: y * this.zoom + this.y };
  }

  /** Show all of the ground. */
  fit() {
    const { clientWidth, clientHeight } = this.stage, { width, height } = this.size;
    const room = Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height);
    // Small pictures are enlarged by whole numbers, so that their pixels stay square.
    this.zoom = Math.max(SMALLEST, room > 2 ? Math.floor(room) : room);
    this.#centre();
    this.fitted = true;
  }

  /** One pixel of the ground on one of the stage. */
  actual() {
    this.zoom = 1;
    this.#centre();
    this.fitted = false;
  }

  #centre() {
    this.x = Math.round((this.stage.clientWidth - this.size.width * this.zoom) / 2);
    this.y = Math.round((this.stage.clientHeight - this.size.height * this.zoom) / 2);
  }

  /** Zoom by a factor around a point of the page; without one around the stage's middle. */
  zoomBy(factor, clientX, clientY) {
    const box = this.stage.getBoundingClientRect();
    const x = (clientX ?? box.left + box.width / 2) - box.left, y = (clientY ?? box.top + box.height / 2) - box.top;
    const zoom = Math.min(LARGEST, Math.max(SMALLEST, this.zoom * factor));
    this.x = x - (x - this.x) * zoom / this.zoom;
    this.y = y - (y - this.y) * zoom / this.zoom;
    this.zoom = zoom;
    this.fitted = false;
    this.#keep();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.#keep();
  }

  /** Some of the ground always stays in sight. */
  #keep() {
    const { clientWidth, clientHeight } = this.stage, rest = 40;
    this.x = Math.min(clientWidth - rest, Math.max(rest - this.size.width * this.zoom, this.x));
    this.y = Math.min(clientHeight - rest, Math.max(rest - this.size.height * this.zoom, this.y));
  }
}
