// The view of the audit log's end, for operators. The server sends no code.

import { json } from "./api.js";
import { element, setText } from "./dom.js";
import { Poll } from "./poll.js";
import { Table } from "./table.js";

const EVERY = 3000; // milliseconds
const MOST = 100;
const APART = new Set(["seq", "time", "event", "agent", "kernel", "session", "instance", "container", "image", "policy", "limits", "evidence"]);

export class Audit {
  title = "Audit log";

  constructor() {
    this.note = element("p", { className: "muted" });
    this.table = new Table("The newest entries of the audit log, newest first", COLUMNS, "There is no entry.");
    this.node = element("div", {}, this.note, this.table.node);
  }

  start() {
    this.poll = new Poll(() => this.refresh(), EVERY);
  }

  stop() {
    this.poll.stop();
  }

  async refresh() {
    const { on, entries } = await json(`/v1/operator/audit?limit=${MOST}`);
    setText(this.note, on ? `The newest ${MOST} entries, without code.` : "This server keeps no audit log.");
    this.table.show(entries.reverse(), ({ seq }) => seq);
  }
}

const COLUMNS = [
  { title: "Number", text: ({ seq }) => seq },
  { title: "Time (UTC)", text: ({ time }) => String(time ?? "").slice(0, 19).replace("T", " ") },
  { title: "Event", text: ({ event }) => event },
  { title: "Agent", text: ({ agent }) => agent ?? "–" },
  { title: "Kernel", text: ({ kernel }) => String(kernel ?? "–").slice(0, 12) },
  { title: "Details", text: detailsOf },
];

function detailsOf(entry) {
  const parts = Object.entries(entry)
    .filter(([name, value]) => !APART.has(name) && value !== null && value !== "")
    .map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return parts.join(", ").slice(0, 300) || "–";
}
