import { app } from "../../scripts/app.js";

const HEAL_FRAMES = 60;
export const ROOT = "framepainter-widget";

/** A DOM widget of ours and its node: it works while the node is in a graph, and leaves nothing behind when the node goes. */
export class NodeWidget {
  /**
   * @param {object} node
   * @param {HTMLElement} root of class ROOT, with the widget's kind as data-kind
   * @param {number} every milliseconds between two looks at what the page does not tell
   */
  constructor(node, root, every) {
    Object.assign(this, { node, root, every, ended: true });
  }

  /** What a kind of widget does: when it begins, from time to time, and when it ends. */
  begun() {}
  look() {}
  gone() {}

  /** Go with the node from now on. */
  follow() {
    this.chain("onAdded", () => this.#begin());
    this.chain("onConfigure", () => this.#heal());
    this.chain("onRemoved", () => this.#end());
    if (this.node.graph) this.#begin();
  }

  /** Do something when the node does; its own function comes first. */
  chain(name, extra) {
    const { node } = this, before = node[name];
    node[name] = function (...all) {
      const result = before?.apply(this, all);
      extra(...all);
      return result;
    };
  }

  /** Pages that make a node again, as undo does, may leave the old element in place of ours. */
  #heal(frames = HEAL_FRAMES) {
    cancelAnimationFrame(this.healing);
    if (this.ended) return;
    this.healing = requestAnimationFrame(() => {
      // Ids are told apart within a graph alone: a node of another subgraph than the one in view may have the same.
      const { node } = this, present = node.graph === app.canvas.graph && node.graph?.getNodeById?.(node.id) === node;
      if (!this.root.isConnected && present) {
        const stale = document.querySelector(`[data-node-id="${node.id}"] .${ROOT}[data-kind=${this.root.dataset.kind}]`);
        if (stale) stale.replaceWith(this.root);
      }
      if (frames > 1) this.#heal(frames - 1);
    });
  }

  /** Only a node in a graph does anything: copying makes others that are dropped without a word. */
  #begin() {
    if (this.ended) {
      this.ended = false;
      this.timer = setInterval(() => this.look(), this.every);
      this.begun();
      queueMicrotask(() => this.look());
    }
    this.#heal();
  }

  #end() {
    this.ended = true;
    clearInterval(this.timer);
    cancelAnimationFrame(this.healing);
    this.gone();
  }
}

/** Tell the page that the workflow has changed: without this neither undo nor saving would know. */
export function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}
