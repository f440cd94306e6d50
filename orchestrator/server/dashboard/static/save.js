// Saves an answer of the server as a file. The request has the token in its header, so a plain link cannot do it.

import { send } from "./api.js";
import { element } from "./dom.js";

export async function save(path, name, kind) {
  const content = await (await send(path)).arrayBuffer();
  const address = URL.createObjectURL(new Blob([content], { type: kind }));
  const link = element("a", { href: address, download: name.replace(/[^\w.-]+/g, "-").slice(0, 100), hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
