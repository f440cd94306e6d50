// Memory and CPU of the kernels over the last hour.

import { json } from "./api.js";
import { megabytes, percent } from "./amounts.js";
import { Chart } from "./chart.js";
import { element } from "./dom.js";

const MOST_POINTS = 720;

export class Usage {
  constructor() {
    this.kernels = new Map(); // by kernel id: {name, memory, cpu}, each of the latter a Map of seconds to values
    this.newest = 0;
    this.memory = new Chart("Memory in MiB", megabytes);
    this.cpu = new Chart("CPU in percent of a core", percent);
    this.node = element("div", { className: "charts" }, this.memory.node, this.cpu.node);
  }

  async refresh() {
    const { now, kernels } = await json(`/v1/usage?after=${this.newest}`);
    for (const kernel of kernels) this.#add(kernel);
    for (const [id, { memory }] of this.kernels) {
      if ([...memory.keys()].at(-1) < now - 3600) this.kernels.delete(id);
    }
    const top = [...this.kernels.entries()]
      .map(([key, kernel]) => ({ key, ...kernel, last: [...kernel.memory.keys()].at(-1) }))
      .sort((a, b) => b.last - a.last || a.name.localeCompare(b.name));
    this.memory.show(top.map(({ key, name, memory }) => ({ key, name, points: memory })));
    this.cpu.show(top.map(({ key, name, cpu }) => ({ key, name, points: cpu })));
  }

  stop() {
    this.memory.stop();
    this.cpu.stop();
  }

  #add({ kernel_id: id, agent, points }) {
    const kernel = this.kernels.get(id) ?? { memory: new Map(), cpu: new Map() };
    kernel.name = agent || `ready ${id.slice(0, 8)}`;
    for (const [time, memory, cpu] of points) {
      kernel.memory.set(time, memory);
      kernel.cpu.set(time, cpu);
      this.newest = Math.max(this.newest, time);
    }
    for (const values of [kernel.memory, kernel.cpu]) {
      for (const time of values.keys()) if (values.size > MOST_POINTS) values.delete(time);
    }
    this.kernels.set(id, kernel);
  }
}
