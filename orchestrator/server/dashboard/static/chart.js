// One chart of one quantity over time, a line for each kernel, with its names and newest values as text.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { element, reconcile, setText } from "./dom.js";

const HEIGHT = 180;
const COLOURS = 6;
const SHORTEST = 120; // seconds that a chart spans
const dark = matchMedia("(prefers-color-scheme: dark)");

export class Chart {
  constructor(title, format) {
    this.title = title;
    this.format = format;
    this.lines = [];
    this.place = element("div", { className: "plot", role: "img", "aria-label": title });
    this.names = element("ul", { className: "legend" });
    this.node = element("figure", {}, element("figcaption", {}, title), this.place, this.names);
    this.onScheme = () => this.#draw();
    dark.addEventListener("change", this.onScheme);
    this.resizing = new ResizeObserver(() => this.plot?.setSize({ width: this.#width(), height: HEIGHT }));
    this.resizing.observe(this.place);
  }

  /** Show lines: each {key, name, points}, where points is a Map of seconds to values; six at most. */
  show(lines) {
    const drawn = lines.slice(0, COLOURS);
    const names = (some) => some.map(({ key }) => key).join();
    const isNew = names(drawn) !== names(this.lines) || this.plot === undefined;
    this.lines = drawn;
    reconcile(
      this.names,
      drawn.map((line, index) => ({ ...line, index })),
      ({ key }) => key,
      () => element("li", {}, element("span", { className: "mark" }), element("span")),
      (item, { name, points, index }) => {
        item.firstElementChild.className = `mark line-${index}`;
        setText(item.lastElementChild, `${name}: ${this.format([...points.values()].at(-1))}`);
      },
    );
    if (isNew) this.#draw();
    else this.plot.setData(this.#data());
  }

  stop() {
    dark.removeEventListener("change", this.onScheme);
    this.resizing.disconnect();
    this.plot?.destroy();
  }

  #width() {
    return Math.max(200, this.place.clientWidth);
  }

  #data() {
    const times = [...new Set(this.lines.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
    return [times, ...this.lines.map(({ points }) => times.map((time) => points.get(time) ?? null))];
  }

  #draw() {
    this.plot?.destroy();
    const style = getComputedStyle(this.place);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const options = {
      width: this.#width(),
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: (_plot, least, most) => [Math.min(least, most - SHORTEST), most] },
        y: { range: (_plot, _least, most) => [0, Math.max(10, most * 1.1)] },
      },
      axes: [axis, { ...axis, size: 56 }],
      series: [{}, ...this.lines.map((_, index) => ({ stroke: colour(`--line-${index}`), width: 2, points: { show: false } }))],
    };
    this.plot = new uPlot(options, this.#data(), this.place);
  }
}
