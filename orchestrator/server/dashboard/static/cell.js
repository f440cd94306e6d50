// One cell as a notebook shows it: number, code, how it ended, outputs.

import { duration, moment } from "./amounts.js";
import { element, setText, textElement } from "./dom.js";
import { outputOf } from "./output.js";

export class Cell {
  constructor(caller, session, number) {
    this.caller = caller;
    this.session = session;
    this.number = number;
    this.isOver = false;
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
    const hadFocus = this.outputs.contains(document.activeElement);
    this.isOver = fields.outcome !== "running";
    setText(this.head, `Cell ${fields.number}`);
    setText(this.facts, factsOf(fields));
    this.article.className = `cell outcome-${this.isOver ? (fields.outcome === "ok" ? "ok" : "failed") : "running"}`;
    if (!this.code.hasChildNodes()) {
      const { text, length } = fields.code;
      setText(this.code, text.length < length ? `${text}\n… ${length - text.length} more characters` : text);
    }
    const context = { caller: this.caller, session: this.session, number: this.number };
    const outputs = fields.outputs.map((output) => outputOf(output, context));
    if (fields.outputs_left_out > 0) outputs.push(element("p", { className: "note" }, `${fields.outputs_left_out} more outputs are not shown.`));
    if (fields.error !== null && !fields.outputs.some(({ kind }) => kind === "error")) {
      outputs.push(textElement("p", { className: "note failed" }, `${fields.error.ename}: ${fields.error.evalue}`));
    }
    this.outputs.replaceChildren(...outputs);
    if (hadFocus) this.head.focus({ preventScroll: true });
  }
}

function factsOf({ outcome, started_at: start, ended_at: end }) {
  const took = end === null ? "" : `, after ${duration(Math.max(0, end - start))}`;
  return `${outcome}${took} · ${moment(start)} UTC`;
}
