// Starts the page: who looks, and which view the address names.

import { announce } from "./announce.js";
import { token } from "./api.js";
import { Audit } from "./audit.js";
import { callerOf } from "./caller.js";
import { element, setText } from "./dom.js";
import { Overview } from "./overview.js";
import { Session } from "./session.js";
import { Sessions } from "./sessions.js";
import { signIn } from "./signin.js";

const VIEWS = [
  { pattern: /^#\/sessions\/([0-9a-f]{1,64})$/, make: (caller, id) => new Session(caller, id) },
  { pattern: /^#\/sessions$/, title: "Sessions", make: (caller) => new Sessions(caller) },
  { pattern: /^#\/audit$/, title: "Audit log", make: () => new Audit(), operator: true },
  { pattern: /^#\/kernels$|/, title: "Kernels", make: (caller) => new Overview(caller) },
];
const TABS = [
  ["#/kernels", "Kernels"],
  ["#/sessions", "Sessions"],
  ["#/audit", "Audit log"],
];

const $ = (id) => document.getElementById(id);
let caller = null;
let current = null;

function open(moveFocus) {
  if (caller === null) return;
  current?.stop();
  const wanted = VIEWS.find(({ pattern, operator }) => pattern.test(location.hash) && (!operator || caller.isOperator));
  current = wanted.make(caller, wanted.pattern.exec(location.hash)?.[1]);
  const heading = element("h2", { tabIndex: -1 });
  const retitle = (title) => {
    setText(heading, title);
    document.title = `${title} · Cellblock`;
  };
  retitle(current.title);
  $("view").replaceChildren(heading, current.node);
  for (const link of $("tabs").children) {
    if ((location.hash || "#/kernels").startsWith(link.getAttribute("href"))) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  current.start(retitle);
  if (moveFocus) heading.focus();
}

function enter(found, moveFocus) {
  caller = found;
  const tabs = TABS.filter(([href]) => href !== "#/audit" || caller.isOperator);
  $("tabs").replaceChildren(...tabs.map(([href, text]) => element("a", { href }, text)));
  setText($("who"), `${caller.name}, group ${caller.group}${caller.isOperator ? ", operator" : ""}`);
  $("tabs").hidden = $("who").hidden = false;
  $("sign-out").hidden = !caller.needsToken;
  open(moveFocus);
}

function leave() {
  current?.stop();
  current = caller = null;
  token.clear();
  $("tabs").hidden = $("who").hidden = $("sign-out").hidden = true;
  document.title = "Cellblock";
  signIn($("view"), (found) => enter(found, true));
}

async function begin() {
  try {
    enter(await callerOf(token.get()), false);
  } catch (error) {
    if (error.status !== 401) announce(error.message);
    leave();
  }
}

window.addEventListener("hashchange", () => open(true));
window.addEventListener("unauthorized", () => {
  leave();
  announce("The token is no longer valid.");
});
$("sign-out").addEventListener("click", () => {
  leave();
  announce("Signed out.");
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  $("view").focus();
});
begin();
