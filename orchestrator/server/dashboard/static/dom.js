// Makes and updates elements. Every text from the server becomes a text node; nothing here parses HTML.

import { visible } from "./visible.js";

const PROPERTIES = new Set(["className", "hidden", "disabled", "type", "value", "colSpan", "tabIndex", "onclick"]);
const texts = new WeakMap(); // what `setText` gave an element

/** Make an element. `attributes` may have the properties above, and attributes that are no handlers. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (PROPERTIES.has(name)) made[name] = value;
    else if (name.startsWith("on") || name === "style" || name === "srcdoc") throw new Error(`${name} is not allowed`);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Set an element's text, only if it differs: what has not changed is neither drawn nor read out again. */
export function setText(target, text) {
  const wanted = String(text ?? "");
  if (texts.get(target) === wanted) return;
  texts.set(target, wanted);
  target.replaceChildren(visible(wanted));
}

/** Make an element with a text from the server. */
export function textElement(tag, attributes, text) {
  const made = element(tag, attributes);
  setText(made, text);
  return made;
}

/**
 * Make `parent` have one child for each item, in their order. A child whose item stays is not moved, so that it keeps
 * its focus and its frames.
 */
export function reconcile(parent, items, keyOf, make, update) {
  const wanted = new Map(items.map((item) => [String(keyOf(item)), item]));
  const known = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  }
  let place = parent.firstElementChild;
  for (const [key, item] of wanted) {
    const child = known.get(key) ?? make(item);
    child.dataset.key = key;
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
}
