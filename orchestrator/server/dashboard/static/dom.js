// Makes and updates elements. Every text from the server becomes a text node; nothing here parses HTML.

import { visible } from "./visible.js";

const PROPERTIES = new Set(["className", "hidden", "disabled", "type", "value", "colSpan", "tabIndex", "onclick"]);

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
  if (target.dataset.text === wanted) return;
  target.dataset.text = wanted;
  target.replaceChildren(visible(wanted));
}

/** Make an element with a text from the server. */
export function textElement(tag, attributes, text) {
  const made = element(tag, attributes);
  setText(made, text);
  return made;
}

/** Make `parent` have one child for each item, in their order. A child whose item stays is kept, with its focus. */
export function reconcile(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let after = null;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = known.get(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    known.delete(key);
    update(child, item);
    const place = after === null ? parent.firstElementChild : after.nextElementSibling;
    if (place !== child) parent.insertBefore(child, place);
    after = child;
  }
  for (const child of known.values()) child.remove();
}
