// The view of kernels: pools and queues, each kernel, and usage over time.

import { actionsOf } from "./actions.js";
import { duration, megabytes, percent } from "./amounts.js";
import { json } from "./api.js";
import { element, reconcile, setText, textElement } from "./dom.js";
import { Poll } from "./poll.js";
import { Table } from "./table.js";
import { Usage } from "./usage.js";

const EVERY = 3000; // milliseconds

export class Overview {
  title = "Kernels";

  constructor(caller) {
    this.caller = caller;
    this.usage = new Usage();
    this.pools = element("ul", { className: "facts" });
    this.table = new Table("Live kernels", this.#columns(), "No kernel lives.");
    this.node = element("div");
    if (caller.isOperator) this.node.append(this.pools, this.table.node);
    this.node.append(element("h3", {}, "Usage over the last hour"), this.usage.node);
  }

  start() {
    this.poll = new Poll(() => this.refresh(), EVERY);
  }

  stop() {
    this.poll.stop();
    this.usage.stop();
  }

  async refresh() {
    await Promise.all([this.caller.isOperator ? this.#refreshKernels() : null, this.usage.refresh()]);
  }

  async #refreshKernels() {
    const { nodes } = await json("/v1/operator/nodes");
    reconcile(this.pools, nodes.flatMap(linesOf), ({ key }) => key, () => element("li"), (item, { text }) => setText(item, text));
    const kernels = ({ address, managers }) =>
      (managers ?? []).flatMap(({ kernels, policy }) => kernels.map((kernel) => ({ ...kernel, policy, address })));
    this.table.show(nodes.flatMap(kernels), ({ address, kernel_id: id, session }) => `${address} ${id} ${session}`);
  }

  #columns() {
    return [
      { title: "Kernel", text: ({ kernel_id: id }) => id.slice(0, 12) },
      { title: "Node", text: ({ address }) => address || "–" },
      { title: "State", text: ({ state }) => state },
      { title: "Agent", make: (row) => this.#agent(row) },
      { title: "Cell", text: ({ cell }) => (cell === null ? "–" : `${cell.number}, for ${duration(cell.age_s)}`) },
      { title: "Memory", text: ({ usage }) => (usage === null ? "–" : memoryText(usage)) },
      { title: "CPU", text: ({ usage }) => percent(usage?.cpu_percent) },
      { title: "Runtime", text: ({ runtime, policy }) => `${runtime}, ${policy}` },
      { title: "Actions", make: (row) => this.#actions(row) },
    ];
  }

  #agent({ agent, session }) {
    if (session === null) return element("span", { className: "muted" }, "none: ready");
    return textElement("a", { href: `#/sessions/${encodeURIComponent(session)}` }, agent);
  }

  #actions({ agent, session }) {
    if (session === null) return element("span", { className: "muted" }, "–");
    return actionsOf(this.caller, session, agent, () => this.poll.now());
  }
}

/** Return the lines about one node: one for each pool; or that it says nothing. */
function linesOf({ address, state, fault, managers }) {
  const name = address ? `${address}${state === "up" ? "" : `, ${state}`}: ` : "";
  if (!managers) return [{ key: address, text: `${name}no answer: ${fault}` }];
  return managers.map((manager) => ({ key: `${address} ${manager.instance}`, text: name + poolText(manager) }));
}

function poolText({ policy, runtime, pool }) {
  const waiting = pool.waiting === 1 ? "1 caller waits" : `${pool.waiting} callers wait`;
  const { max, leased, ready, starting, ending } = pool;
  return `${policy} (${runtime}): ${leased} of ${max} in use, ${ready} ready, ${starting} starting, ${ending} ending; ${waiting}`;
}

const memoryText = (usage) => `${megabytes(usage.memory_mb)} of ${megabytes(usage.memory_limit_mb)}`;
