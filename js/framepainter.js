import { app } from "../../scripts/app.js";
import { wordsWidget } from "./chips.js";
import { addFileView, FILES } from "./files.js";
import { sweep } from "./node_widget.js";
import { keepOnFace } from "./subgraph_face.js";
import { editorWidget } from "./widget.js";

// The only file here that does anything when it is loaded; the page loads all of them.
app.registerExtension({
  name: "framepainter.Editors",
  getCustomWidgets: () => ({
    FRAMEPAINTER_SKETCH: editorWidget("sketch"),
    FRAMEPAINTER_DRAG: editorWidget("drag"),
    FRAMEPAINTER_COARSE: editorWidget("coarse"),
    FRAMEPAINTER_WORDS: wordsWidget,
  }),
  setup: keepOnFace,
  afterConfigureGraph: sweep,
  nodeCreated(node) {
    if (node.comfyClass in FILES) addFileView(node);
  },
});
