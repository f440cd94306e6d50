// One cell as a notebook shows it: number, code, how it ended, outputs.

import { duration, moment } from "./amounts.js";
import { element, reconcile, setText, textElement } from "./dom.js";
import { outputOf } from "./output.js";

export class Cell {
  constructor(caller, session, number) {
    this.caller = caller;
    this.session = session;
    this.number = number;
    this.isOver = false;
    this.versions = []; // of the outputs: what each is, and how often it has changed
    this.head = element("h3", { id: `cell-${number}`, tabIndex: -1 });
    this.facts = element("p", { className: "muted" });
    this.code = element("pre", { className: "code", dir: "ltr", tabIndex: 0, role: "region", "aria-label": `Code of cell ${number}` });
    this.outputs = element("div", { className: "outputs" });
    this.article = element("article", { "aria-labelledby": this.head.id }, this.head, this.facts, this.code, this.outputs);
    this.node = element("li", {}, this.article);
  }

  /** Show what the server has of the cell. A cell that is over does not change any longer. */
  show(fields) {
    if (this.isOver) return;
    const focused = [...this.outputs.children].findIndex((child) => child.contains(document.activeElement));
    this.isOver = fields.outcome !== "running";
    setText(this.head, `Cell ${fields.number}`);
    setText(this.facts, factsOf(fields));
    this.article.className = `cell outcome-${this.isOver ? (fields.outcome === "ok" ? "ok" : "failed") : "running"}`;
    if (!this.code.hasChildNodes()) {
      const { text, length } = fields.code;
      setText(this.code, text.length < length ? `${text}\n… ${length - text.length} more characters` : text);
    }
    const context = { caller: this.caller, session: this.session, number: this.number };
    const items = fields.outputs.map((output) => ({ form: JSON.stringify(output), make: () => outputOf(output, context) }));
    if (fields.outputs_left_out > 0) {
      items.push(noteOf("note", `${fields.outputs_left_out} more outputs are not shown.`));
    }
    if (fields.error !== null && !fields.outputs.some(({ kind }) => kind === "error")) {
      items.push(noteOf("note failed", `${fields.error.ename}: ${fields.error.evalue}`));
    }
    this.#showOutputs(items);
    if (focused < 0 || this.outputs.contains(document.activeElement)) return;
    const place = this.isOver ? this.head : (this.outputs.children[focused]?.querySelector("[tabindex]") ?? this.head);
    place.focus({ preventScroll: true });
  }

  /** Make the outputs anew that are not as they were. Others stay, with their frames: a frame that moves is loaded anew. */
  #showOutputs(items) {
    this.versions = items.map(({ form }, index) => {
      const known = this.versions[index];
      return known?.form === form ? known : { form, number: (known?.number ?? 0) + 1 };
    });
    const places = items.map(({ make }, index) => ({ make, key: `${index}.${this.versions[index].number}` }));
    reconcile(this.outputs, places, ({ key }) => key, ({ make }) => make(), () => {});
  }
}

const noteOf = (className, text) => ({ form: text, make: () => textElement("p", { className }, text) });

function factsOf({ outcome, started_at: start, ended_at: end }) {
  const took = end === null ? "" : `, after ${duration(Math.max(0, end - start))}`;
  return `${outcome}${took} · ${moment(start)} UTC`;
}
