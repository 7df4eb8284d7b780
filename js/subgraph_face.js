/** A node of ours that is put into a subgraph keeps its widget on the subgraph's face. */

const CONVERTED = "subgraph-converted";  // the page's own event, on its canvas

/** Once, when the page starts. */
export function keepOnFace() {
  document.addEventListener(CONVERTED, ({ detail }) => {
    const outer = detail?.subgraphNode, shown = outer?.properties?.proxyWidgets ?? [];
    const ours = (outer?.subgraph?.nodes ?? []).flatMap((node) => (node.widgets ?? [])
      .filter((widget) => /^framepainter_(sketch|drag|coarse|words)$/.test(widget.type)).map((widget) => [String(node.id), widget.name]));
    const added = ours.filter(([id, name]) => !shown.some(([other, named]) => String(other) === id && named === name));
    if (added.length) outer.properties.proxyWidgets = [...shown, ...added];
  });
}
