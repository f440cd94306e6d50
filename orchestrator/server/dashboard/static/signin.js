// The form in which a token is entered.

import { announce } from "./announce.js";
import { token } from "./api.js";
import { callerOf } from "./caller.js";
import { element } from "./dom.js";

/** Ask for a token until the server takes one. `done` gets who has it. */
export function signIn(view, done) {
  const field = element("input", { type: "password", id: "token", autocomplete: "off", spellcheck: "false", required: true });
  const form = element(
    "form",
    { className: "sign-in" },
    element("h2", {}, "Sign in"),
    element("p", {}, "This server needs a token. ", element("code", {}, "cellblock token create NAME"), " makes one."),
    element("label", { for: "token" }, "Token"),
    field,
    element("button", { type: "submit" }, "Sign in"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = field.value.trim();
    try {
      const caller = await callerOf(given);
      token.set(given);
      announce(`Signed in as ${caller.name}.`);
      done(caller);
    } catch (error) {
      announce(error.status === 401 ? "The token is unknown, revoked or expired." : error.message);
      field.select();
      field.focus();
    }
  });
  view.replaceChildren(form);
  field.focus();
}
