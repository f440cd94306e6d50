// Makes HTML or SVG of a cell harmless and bounded. The frame that shows it can do nothing either: see rich.js.

import DOMPurify from "./vendor/dompurify/purify.es.mjs";

const MOST_TAGS = 20_000;
const MOST_DRAWN = 50_000; // elements, each counted as often as something refers to it
const DEEPEST = 300; // references and elements inside each other
const URL_ATTRIBUTES = new Set(["href", "xlink:href", "src"]);
const LOCAL = /^#[\w:.-]+$/;
const PICTURE = /^data:image\/(?:png|jpeg|gif);base64,[a-z0-9+/=\s]*$/i;
const REFERENCE = /url\(\s*["']?(#[\w:.-]+)["']?\s*\)/gi;

const RULES = {
  USE_PROFILES: { html: true, svg: true },
  ADD_TAGS: ["use"],
  FORBID_TAGS: [
    "animate", "animatecolor", "animatemotion", "animatetransform", "area", "audio", "base", "button", "datalist",
    "dialog", "embed", "fieldset", "form", "iframe", "input", "link", "map", "marquee", "math", "meta", "noscript",
    "object", "option", "picture", "script", "select", "set", "slot", "source", "template", "textarea", "track", "video",
  ],
  FORBID_ATTR: [
    "action", "autofocus", "autoplay", "background", "contenteditable", "formaction", "is", "name", "ping", "popover",
    "popovertarget", "poster", "slot", "srcset", "tabindex", "target", "usemap",
  ],
  ALLOW_DATA_ATTR: false,
  ALLOWED_NAMESPACES: ["http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"],
  FORCE_BODY: true,
  RETURN_DOM: true,
};

const purifier = DOMPurify(window);
purifier.addHook("uponSanitizeAttribute", (node, data) => {
  const value = data.attrValue;
  if (URL_ATTRIBUTES.has(data.attrName)) {
    const isPicture = data.attrName === "src" ? node.nodeName === "IMG" : node.nodeName === "image";
    data.keepAttr = LOCAL.test(value) ? data.attrName !== "src" : isPicture && PICTURE.test(value);
  } else if (!isLocalStyle(value)) {
    data.keepAttr = false;
  }
});
purifier.addHook("uponSanitizeElement", (node, data) => {
  if (data.tagName === "style" && !isPlainStyle(node.textContent)) node.remove();
});

/** Return sanitised HTML; null if it would be too much to draw. */
export function sanitised(html) {
  if (html.split("<", MOST_TAGS + 1).length > MOST_TAGS) return null;
  const body = purifier.sanitize(html, RULES);
  return drawn(body) > MOST_DRAWN ? null : body.innerHTML;
}

/** Return whether a style, or an attribute, refers to nothing but parts of its own document. */
function isLocalStyle(text) {
  const rest = text.replace(REFERENCE, "");
  return !/url\s*\(|image-set|\\|@import|@font-face|expression|-moz-binding|javascript:/i.test(rest);
}

/** Style sheets may refer to nothing at all: a rule can make many elements refer to one. */
const isPlainStyle = (text) => isLocalStyle(text) && !/url\s*\(/i.test(text);

/** Return how many elements are drawn, with those that `use`, patterns, masks and markers repeat. A cycle: infinity. */
function drawn(root) {
  const byId = new Map();
  for (const each of root.querySelectorAll("[id]")) if (!byId.has(each.id)) byId.set(each.id, each);
  const costs = new Map();
  const open = new Set();
  const cost = (node) => {
    if (costs.has(node)) return costs.get(node);
    if (open.has(node) || open.size > DEEPEST) return Infinity;
    open.add(node);
    let sum = 1;
    for (const child of node.children) sum += cost(child);
    for (const id of referencesOf(node)) if (byId.has(id)) sum += cost(byId.get(id));
    open.delete(node);
    costs.set(node, sum);
    return sum;
  };
  return cost(root);
}

function referencesOf(node) {
  const found = [];
  for (const { name, value } of node.attributes) {
    if (URL_ATTRIBUTES.has(name) && value.startsWith("#")) found.push(value.slice(1));
    else for (const match of value.matchAll(REFERENCE)) found.push(match[1].slice(1));
  }
  return found;
}
