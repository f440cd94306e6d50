// A table that becomes a list of cards on a narrow screen, and whose rows keep their place and focus.

import { element, reconcile, setText } from "./dom.js";

export class Table {
  /**
   * @param caption says what the table has.
   * @param columns each {title, text(item)} or {title, make(item), update?(node, item)}.
   */
  constructor(caption, columns, empty) {
    this.columns = columns;
    this.body = element("tbody", { role: "rowgroup" });
    this.empty = element("p", { className: "muted", hidden: true }, empty);
    const heads = columns.map(({ title }) => element("th", { scope: "col", role: "columnheader" }, title));
    this.table = element(
      "table",
      { role: "table" },
      element("caption", { className: "unseen" }, caption),
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)),
      this.body,
    );
    this.node = element("div", {}, this.table, this.empty);
  }

  show(items, keyOf) {
    reconcile(this.body, items, keyOf, (item) => this.#row(item), (row, item) => this.#update(row, item));
    this.empty.hidden = items.length > 0;
    this.table.hidden = items.length === 0;
  }

  #row(item) {
    const cells = this.columns.map(({ title, make }) =>
      element("td", { role: "cell", "data-title": title }, make ? make(item) : null),
    );
    return element("tr", { role: "row" }, ...cells);
  }

  #update(row, item) {
    this.columns.forEach(({ text, update }, index) => {
      const cell = row.children[index];
      if (text) setText(cell, text(item));
      else update?.(cell.firstElementChild, item);
    });
  }
}
