// The view of sessions: those of the caller's group; of all groups for an operator.

import { moment } from "./amounts.js";
import { json } from "./api.js";
import { element, setText, textElement } from "./dom.js";
import { Poll } from "./poll.js";
import { Table } from "./table.js";

const EVERY = 3000; // milliseconds
const MOST = 200;

export class Sessions {
  title = "Sessions";

  constructor(caller) {
    this.caller = caller;
    this.ended = element("input", { type: "checkbox", onclick: () => this.poll.now() });
    this.note = element("p", { className: "muted" });
    this.table = new Table("Sessions, the last used first", this.#columns(), "There is no session.");
    this.node = element(
      "div",
      {},
      element("p", {}, element("label", {}, this.ended, " Show ended sessions")),
      this.table.node,
      this.note,
    );
  }

  start() {
    this.poll = new Poll(() => this.refresh(), EVERY);
  }

  stop() {
    this.poll.stop();
  }

  async refresh() {
    const { sessions } = await json(`${this.caller.sessions}?limit=${MOST}&ended=${this.ended.checked}`);
    this.table.show(sessions, ({ session_id: id }) => id);
    setText(this.note, sessions.length === MOST ? `Only the ${MOST} that were used last are shown.` : "");
  }

  #columns() {
    return [
      { title: "Agent", make: (row) => textElement("a", { href: `#/sessions/${row.session_id}` }, this.caller.agent(row)) },
      { title: "State", text: ({ state, end_reason: reason }) => (reason ? `${state}: ${reason}` : state) },
      ...(this.caller.isOperator ? [{ title: "Node", text: ({ node }) => node ?? "–" }] : []),
      { title: "Cells", text: ({ cell_count: count }) => count },
      { title: "Policy", text: ({ policy }) => policy },
      { title: "Last used (UTC)", text: ({ last_used_at: at }) => moment(at) },
    ];
  }
}
