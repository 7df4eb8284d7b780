/**
 * The editor's keys. They are taken at the window, before the page's own shortcuts; only letters and digits typed into a
 * field, and the keys that work buttons and sliders, go their usual way.
 *
 * @param {import("./shell.js").Editor} editor
 * @param {KeyboardEvent} event
 */
export function onKey(editor, event) {
  event.stopImmediatePropagation();
  const { key, target } = event, command = event.ctrlKey || event.metaKey;
  if (target?.closest?.(".framepainter-ask")) return;
  if (event.type !== "keydown") {
    if (event.type === "keyup" && key === " ") editor.gestures.space(false);
    if (event.type === "keyup") editor.tool.keyup?.(event);
    return;
  }
  const typing = target?.matches?.("input[type=number]"), sliding = target?.matches?.("input[type=range]");
  const pressing = key === " " || key === "Enter";
  if (command) {
    if (withCommand(editor, event)) event.preventDefault();
  } else if (event.altKey || key === "Tab") {
    return;
  } else if (typing) {
    if (key === "Escape" || key === "Enter") editor.focus();
  } else if (pressing && target?.matches?.("[role=option]")) {
    event.preventDefault();
    target.click();
  } else if ((sliding && key.startsWith("Arrow")) || (pressing && target?.matches?.("button"))) {
    return;
  } else if (alone(editor, event)) {
    event.preventDefault();
  }
}

function withCommand(editor, event) {
  const key = event.key.toLowerCase();
  if (key === "enter") {
    if (event.shiftKey) editor.run();
    else editor.close();
  } else if (key === "s") editor.say("The drawing is already in the node; save the workflow after closing");
  else if (key === "z" || key === "y") {
    editor.travel(key === "y" || event.shiftKey ? 1 : -1);
    hide(event);
  } else if (key === "+" || key === "=") editor.zoom(1.25);
  else if (key === "-") editor.zoom(1 / 1.25);
  else if (key === "0") editor.fit();
  else return key === "a" || key === "o" || key === "d";
  return true;
}

/**
 * Older pages look at an undo key one frame after their listener ran, when it is too late to stop the event, and would undo
 * the graph under the editor. This event, and no other, then says that no Ctrl was held.
 */
function hide(event) {
  for (const name of ["ctrlKey", "metaKey"]) Object.defineProperty(event, name, { value: false });
}

function alone(editor, event) {
  const { key } = event;
  if (editor.tool.key?.(event)) return true;
  if (key === " ") editor.gestures.space(true);
  else if (key === "Escape") {
    if (!editor.help.hidden) editor.toggleHelp(false);
    else if (editor.gestures.busy()) editor.gestures.cancel();
    else editor.close();
  } else if (key === "+" || key === "=") editor.zoom(1.25);
  else if (key === "-" || key === "_") editor.zoom(1 / 1.25);
  else if (key === "0") editor.fit();
  else if (key === "1") editor.actual();
  else if (key === "," || key === ".") return editor.strip.step(key === "." ? 1 : -1);
  else if (key === "?" || key === "F1") editor.toggleHelp();
  else return key === "Backspace" || key === "Delete";
  return true;
}
