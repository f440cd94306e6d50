// Asks before something that cannot be undone.

import { setText } from "./dom.js";

/** Return whether the user agrees. The focus returns to where it was. */
export function ask(title, text, yes) {
  const dialog = document.getElementById("question");
  setText(document.getElementById("question-title"), title);
  setText(document.getElementById("question-text"), text);
  setText(document.getElementById("question-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => {
      if (dialog.open) return; // the event of an earlier question comes late
      dialog.removeEventListener("close", closed);
      resolve(dialog.returnValue === "yes");
    };
    dialog.addEventListener("close", closed);
  });
}
