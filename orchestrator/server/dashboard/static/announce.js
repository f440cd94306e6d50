// Says what an action did, or that the server is gone: the one place that a screen reader reads out by itself.

import { setText } from "./dom.js";

export function announce(text) {
  setText(document.getElementById("status"), text);
}
