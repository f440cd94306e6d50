// One output of a cell: text with colours, a checked picture, or HTML and SVG in a frame.

import { announce } from "./announce.js";
import { bytes } from "./amounts.js";
import { path } from "./api.js";
import { coloured } from "./ansi.js";
import { element, textElement } from "./dom.js";
import { sizeOf } from "./picture.js";
import { rich } from "./rich.js";
import { save } from "./save.js";

/** Return an output as an element. `context` says which cell of which session it is of. */
export function outputOf(output, context) {
  const title = `Output ${output.index + 1} of cell ${context.number}`;
  const node = element("div", { className: `output ${output.kind}` });
  for (const { mime, length } of output.too_large ?? []) {
    node.append(note(`${mime} of ${bytes(length)} is too large to show.`), saveButton(output, context, title, mime));
  }
  node.append(bodyOf(output, title, context));
  return node;
}

function bodyOf(output, title, context) {
  if (output.kind !== "data") return textOf(output, title, context);
  const { mime, text } = output;
  const instead = (reason) => [note(`${mime} is not shown. ${reason}`), saveButton(output, context, title, mime)];
  if (mime === "text/html" || mime === "image/svg+xml") {
    const place = rich(text, title, (reason) => place.replaceChildren(...instead(reason)));
    return place;
  }
  if (mime.startsWith("image/")) {
    const size = sizeOf(mime, text);
    if (size === null) return element("div", {}, ...instead("It is no picture of this kind, or too large."));
    const source = `data:${mime};base64,${text.replace(/\s/g, "")}`;
    const alt = `${title}: a picture of ${size.width} by ${size.height} pixels`;
    return element("img", { src: source, alt, width: size.width, height: size.height, loading: "lazy", decoding: "async" });
  }
  return textOf(output, title, context, mime);
}

function textOf(output, title, context, mime = "") {
  const kind = output.name ?? (output.kind === "error" ? "traceback" : mime);
  const label = `${title}${kind ? `, ${kind}` : ""}`;
  const text = element("pre", { dir: "ltr", tabIndex: 0, role: "region", "aria-label": label });
  text.append(coloured(output.text));
  if (output.text.length >= output.length) return text;
  const rest = `The first ${output.text.length} of ${output.length} characters are shown.`;
  return element("div", {}, text, note(rest), saveButton(output, context, title, mime));
}

const note = (text) => textElement("p", { className: "note" }, text);

function saveButton({ index }, { caller, session, number }, title, mime) {
  const query = mime ? `?mime=${encodeURIComponent(mime)}` : "";
  const address = caller.session(session, path`/history/${number}/outputs/${index}` + query);
  const onclick = async () => {
    try {
      await save(address, `cell-${number}-output-${index + 1}.txt`, "text/plain");
    } catch (error) {
      announce(error.message);
    }
  };
  return element("button", { type: "button", onclick, "aria-label": `Save all of it: ${title}` }, "Save all of it");
}
