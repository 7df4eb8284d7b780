import { app } from "../../scripts/app.js";
import { isPresent } from "./graph.js";

const HEAL_FRAMES = 60;
export const ROOT = "framepainter-widget";

/** All that have begun: `onRemoved` does not fire for nodes inside subgraphs, so that each looks whether its node is still there. */
const BEGUN = new Set();

/** End the widgets whose nodes have gone, as after a workflow was loaded or undone. */
export function sweep() {
  for (const widget of BEGUN) if (!isPresent(widget.node)) widget.end();
}

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
    this.chain("onRemoved", () => this.end());
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
      this.missed = 0;
      this.timer = setInterval(() => this.#tick(), this.every);
      BEGUN.add(this);
      this.begun();
      queueMicrotask(() => this.look());
    }
    this.#heal();
  }

  /** A node that is missing at two looks in a row has gone; while a subgraph is made it is missing for a moment. */
  #tick() {
    this.missed = isPresent(this.node) ? 0 : this.missed + 1;
    if (this.missed > 1) this.end();
    else this.look();
  }

  end() {
    if (this.ended) return;
    this.ended = true;
    BEGUN.delete(this);
    clearInterval(this.timer);
    cancelAnimationFrame(this.healing);
    this.gone();
  }
}

/** Tell the page that the workflow has changed: without this neither undo nor saving would know. It takes its time to compare. */
export const remember = () => setTimeout(tell);

function tell() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}
