import { app } from "../../scripts/app.js";

/** Ways through the page's graph: through reroutes, bypassed nodes and subgraphs. */

/** The page's own number for the inner side of a subgraph's inputs. */
const SUBGRAPH_INPUT = -10;
const BYPASSED = 4;
const MAX_STEPS = 64;

const linkOf = (graph, id) => graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id];

/** The link at an input, by its number. Nodes of subgraphs have a method of that name that means something else. */
export const inputLink = (node, slot) => (node && slot >= 0 ? globalThis.LiteGraph.LGraphNode.prototype.getInputLink.call(node, slot) : null);

const slotOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

export const titleOf = (node) => node.title || node.comfyClass || node.type;

const rootGraph = () => app.rootGraph ?? app.graph?.rootGraph ?? app.graph;

/** The node that stands for a subgraph in the graph around it. */
export function outerNode(inner) {
  const root = rootGraph();
  for (const graph of [root, ...(root?.subgraphs?.values?.() ?? [])]) {
    const found = graph.nodes?.find((node) => node.subgraph && node.subgraph.id === inner.id);
    if (found) return found;
  }
  return null;
}

/** The nodes of the workflow, at any depth. */
export const allNodes = () => [rootGraph(), ...(rootGraph()?.subgraphs?.values?.() ?? [])].flatMap((graph) => graph?.nodes ?? []);

/** Whether a node lies in the workflow that the page holds, at any depth. */
export function isPresent(node) {
  const root = rootGraph();
  for (let step = 0; node && step < MAX_STEPS; step++) {
    const { graph } = node;
    if (graph?.getNodeById?.(node.id) !== node) return false;
    if (graph === root) return true;
    if (root?.subgraphs?.get?.(graph.id) !== graph) return false;
    node = outerNode(graph);
  }
  return false;
}

/** A node's id in a prompt: those of the subgraphs around it come first. */
export function promptId(node) {
  const outer = node.graph && node.graph !== rootGraph() ? outerNode(node.graph) : null;
  return outer ? `${promptId(outer)}:${node.id}` : String(node.id);
}

/**
 * The node output that an input gets its value from.
 * @param {object} node
 * @param {string} name of the input
 * @returns {{node: object, slot: number} | null}
 */
export function originOf(node, name) {
  const end = follow(node, name);
  return end?.outer ? null : end;
}

/**
 * @returns {{node: object, slot: number, outer?: boolean} | null} outer: the way ends at an unconnected input of the node of a
 *   subgraph, which may have a widget for it
 */
function follow(node, name) {
  let { graph } = node, link = inputLink(node, slotOf(node, name));
  for (let step = 0; link && step < MAX_STEPS; step++) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) {
      const outer = outerNode(graph);
      if (!outer) return null;
      const slot = link.origin_slot;
      graph = outer.graph;
      link = inputLink(outer, slot);
      if (!link) return { node: outer, slot, outer: true };
      continue;
    }
    const origin = graph?.getNodeById?.(link.origin_id);
    if (!origin) return null;
    if (origin.subgraph) {
      const ids = origin.subgraph.outputs?.[link.origin_slot]?.linkIds ?? [];
      graph = origin.subgraph;
      link = linkOf(graph, ids[0]);
    } else if (origin.isVirtualNode && origin.type === "PrimitiveNode") {
      return { node: origin, slot: 0 };
    } else if (origin.isVirtualNode || origin.type === "Reroute" || origin.mode === BYPASSED) {
      const type = origin.outputs?.[link.origin_slot]?.type;
      link = inputLink(origin, origin.inputs?.findIndex((i, at) => inputLink(origin, at) && (origin.inputs.length === 1 || i.type === type)) ?? -1);
    } else {
      return { node: origin, slot: link.origin_slot };
    }
  }
  return null;
}

/**
 * Where a widget's value comes from: itself, the face of a subgraph, or a primitive node.
 * @param {object} node
 * @param {string} name of the widget
 * @returns {{node: object, widget: object} | null} null: only a run can tell
 */
export function widgetOf(node, name) {
  if (!inputLink(node, slotOf(node, name))) {
    const widget = node.widgets?.find((w) => w.name === name);
    return widget ? { node, widget } : null;
  }
  const end = follow(node, name);
  if (!end) return null;
  if (end.outer) {
    const input = end.node.inputs[end.slot], widget = end.node.widgets?.find((w) => w.name === (input.widget?.name ?? input.name));
    return widget ? { node: end.node, widget } : null;
  }
  const widget = /^Primitive/.test(end.node.comfyClass ?? end.node.type) ? end.node.widgets?.[0] : null;
  return widget ? { node: end.node, widget } : null;
}

/** The value of a widget, wherever it comes from; undefined if only a run can tell. */
export const valueOf = (node, name) => widgetOf(node, name)?.widget.value;
