import { button, element } from "./dom.js";

/** Frames of a video beside each other, to choose the one that is edited. */
export class FilmStrip {
  /** @param {(index: number) => void} choose */
  constructor(choose) {
    this.choose = choose;
    this.number = element("input", { type: "number", min: 0, step: 1, "aria-label": "Frame to edit", "data-number": "frame",
                                     on: { change: () => this.#take(Number(this.number.value)) } });
    this.about = element("span", { class: "framepainter-unit" });
    this.cells = element("div", { class: "framepainter-cells" });
    this.root = element("div", { class: "framepainter-strip", role: "group", "aria-label": "Frames of the video", hidden: true },
      element("label", { title: "Frame to edit, counted from 0 (keys: comma, period)" }, element("span", { text: "Frame" }), this.number, this.about), this.cells);
    this.key = null;
  }

  /**
   * Show the strip of some footage.
   * @param {string} key of the video and how it is read
   * @param {number} index of the frame that is edited now
   * @param {() => Promise<object>} load what the server says of it, if it is another one than before
   */
  async show(key, index, load) {
    this.index = index;
    this.root.hidden = false;
    if (key === this.key) return this.#mark();
    this.key = key;
    this.film = null;
    this.cells.replaceChildren();
    this.about.textContent = "…";
    try {
      const film = await load();
      if (this.key !== key) return;
      this.film = film;
      this.#fill();
    } catch (error) {
      if (this.key === key) this.about.textContent = error.message;
    }
  }

  hide() {
    this.root.hidden = true;
    this.key = this.film = null;
  }

  /** One frame on or back. @returns {boolean} whether there is a strip */
  step(by) {
    if (this.film) this.#take(this.index + by);
    return Boolean(this.film);
  }

  #take(value) {
    if (!this.film || !Number.isFinite(value)) return;
    const index = Math.min(this.film.count - 1, Math.max(0, Math.round(value)));
    if (index !== this.index) this.choose(index);
    this.index = index;
    this.#mark();
  }

  #fill() {
    const { indices, thumb: [width, height], sheet, count, fps } = this.film;
    this.number.max = count - 1;
    this.about.textContent = `of ${count} at ${Math.round(fps * 100) / 100} a second`;
    this.cells.replaceChildren(...indices.map((index, i) => {
      const made = button({ text: String(index), label: `Frame ${index}, ${(index / fps).toFixed(2)} s`, class: "framepainter-cell", run: () => this.#take(index) });
      made.prepend(element("i", { style: `width:${width}px;height:${height}px;background:url(${sheet}) ${-i * width}px 0` }));
      return made;
    }));
    this.#mark();
  }

  #mark() {
    this.number.value = String(this.index);
    if (!this.film) return;
    const { indices } = this.film, nearest = indices.reduce((best, v, i) => (Math.abs(v - this.index) < Math.abs(indices[best] - this.index) ? i : best), 0);
    [...this.cells.children].forEach((cell, i) => cell.setAttribute("aria-pressed", String(i === nearest && indices[i] === this.index)));
    this.cells.children[nearest]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
