// What can be done to a session: interrupt, hibernate, end, export.

import { json } from "./api.js";
import { announce } from "./announce.js";
import { ask } from "./ask.js";
import { element } from "./dom.js";
import { save } from "./save.js";

/** Return the buttons for one session. `after` is called when something was done. */
export function actionsOf(caller, id, agent, after) {
  const act = (work) => async (event) => {
    const button = event.currentTarget;
    button.setAttribute("aria-busy", "true");
    try {
      const said = await work();
      if (said) announce(said);
      after();
    } catch (error) {
      announce(error.message);
    } finally {
      button.removeAttribute("aria-busy");
    }
  };
  const button = (text, work, className = "") =>
    element("button", { type: "button", className, onclick: act(work), "aria-label": `${text} ${agent}` }, text);
  return element(
    "div",
    { className: "buttons", role: "group", "aria-label": `Actions on ${agent}` },
    button("Interrupt", () => interrupt(caller, id, agent)),
    button("Hibernate", () => hibernate(caller, id, agent)),
    button("Export", () => exportNotebook(caller, id, agent)),
    button("End", () => end(caller, id, agent), "danger"),
  );
}

async function interrupt(caller, id, agent) {
  const { interrupted } = await json(caller.session(id, "/interrupt"), { method: "POST" });
  return interrupted ? `The running cell of ${agent} was interrupted.` : `No cell of ${agent} runs.`;
}

async function hibernate(caller, id, agent) {
  const { asleep } = await json(caller.session(id, "/hibernate"), { method: "POST" });
  return asleep ? `${agent} sleeps.` : `${agent} is in use, and does not sleep.`;
}

async function exportNotebook(caller, id, agent) {
  await save(caller.session(id, "/notebook"), `${agent}.ipynb`, "application/x-ipynb+json");
  return `The notebook of ${agent} was saved.`;
}

async function end(caller, id, agent) {
  const text = "Its kernel and variables are lost, and a running cell is killed. Its cells and outputs stay.";
  if (!(await ask(`End the session of ${agent}?`, text, "End it"))) return "";
  const { ended } = await json(caller.session(id), { method: "DELETE" });
  return ended ? `The session of ${agent} has ended.` : `The session of ${agent} had ended already.`;
}
