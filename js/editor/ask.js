import { addStyle } from "../style.js";
import { button, element } from "./dom.js";

/**
 * Ask a question above everything else.
 * @param {Element} place to put the dialog
 * @param {string} question
 * @param {string} yes what the button for it says
 * @returns {Promise<boolean>}
 */
export function ask(place, question, yes) {
  return new Promise((answer) => {
    const end = (value) => {
      dialog.close();
      dialog.remove();
      answer(value);
    };
    const dialog = element("dialog", { class: "framepainter-ask", role: "alertdialog", "aria-label": question },
      element("p", { text: question }),
      element("div", { class: "framepainter-row" }, button({ text: "Cancel", id: "no", run: () => end(false) }),
              button({ text: yes, id: "yes", class: "framepainter-main", run: () => end(true) })));
    for (const type of ["pointerdown", "mousedown", "keydown", "keyup"]) dialog.addEventListener(type, (event) => event.stopPropagation());
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      event.stopPropagation();
      end(false);
    });
    addStyle(dialog);
    place.append(dialog);
    dialog.showModal();
    dialog.querySelector("[data-action=no]").focus();
  });
}
