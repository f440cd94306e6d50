// The view of one session: its state, its actions, and 20 of its cells at a time.

import { actionsOf } from "./actions.js";
import { bytes, moment } from "./amounts.js";
import { json } from "./api.js";
import { Cell } from "./cell.js";
import { element, reconcile, setText } from "./dom.js";
import { Poll } from "./poll.js";

const EVERY = 1000; // milliseconds: a running cell shows what it has put out
const PAGE = 20; // cells; the server returns no more at once

export class Session {
  title = "Session";

  constructor(caller, id) {
    this.caller = caller;
    this.id = id;
    this.cells = new Map(); // those on the page, by number
    this.last = null; // the last cell of the page; null: the newest, as they come
    this.count = 0;
    this.facts = element("p", { className: "muted" });
    this.actions = element("div");
    this.range = element("span");
    this.earlier = element("button", { type: "button", onclick: () => this.#turn(-PAGE) }, "Earlier cells");
    this.later = element("button", { type: "button", onclick: () => this.#turn(PAGE) }, "Later cells");
    this.list = element("ol", { className: "cells", "aria-label": "Cells" });
    this.node = element(
      "div",
      {},
      this.facts,
      this.actions,
      element("p", { className: "buttons", role: "group", "aria-label": "Pages of cells" }, this.earlier, this.range, this.later),
      this.list,
    );
  }

  start(retitle) {
    this.retitle = retitle;
    this.poll = new Poll(() => this.refresh(), EVERY);
  }

  stop() {
    this.poll.stop();
  }

  async refresh() {
    const row = await json(this.caller.session(this.id));
    this.count = row.cell_count;
    this.#showRow(row);
    const last = Math.min(this.last ?? this.count, this.count);
    const first = Math.max(1, last - PAGE + 1);
    const numbers = Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index);
    const missing = numbers.filter((number) => !this.cells.get(number)?.isOver);
    if (missing.length > 0) {
      const range = `first=${missing[0]}&last=${missing.at(-1)}`;
      const { cells } = await json(this.caller.session(this.id, `/view?${range}`));
      for (const fields of cells) this.#show(fields);
    }
    const shown = numbers.filter((number) => this.cells.has(number));
    for (const number of this.cells.keys()) if (number < first || number > last) this.cells.delete(number);
    reconcile(this.list, shown, (number) => number, (number) => this.cells.get(number).node, () => {});
    setText(this.range, this.count === 0 ? "No cell has run." : `Cells ${first} to ${last} of ${this.count}`);
    this.earlier.disabled = first <= 1;
    this.later.disabled = last >= this.count;
  }

  #show(fields) {
    const cell = this.cells.get(fields.number) ?? new Cell(this.caller, this.id, fields.number);
    cell.show(fields);
    this.cells.set(fields.number, cell);
  }

  #showRow(row) {
    const agent = this.caller.agent(row);
    this.retitle(`Session of ${agent}`);
    if (!this.actions.hasChildNodes()) {
      this.actions.append(actionsOf(this.caller, this.id, agent, () => this.poll.now()));
    }
    const state = row.end_reason ? `${row.state}: ${row.end_reason}` : row.state;
    const size = bytes(row.bytes ?? 0);
    setText(this.facts, `${state} · ${row.policy} · ${row.runtime} · ${size} · last used ${moment(row.last_used_at)} UTC`);
  }

  #turn(by) {
    const last = Math.max(PAGE, Math.min(this.last ?? this.count, this.count) + by);
    this.last = last >= this.count ? null : last;
    this.poll.now();
  }
}
