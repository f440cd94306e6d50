// Shows HTML and SVG of a cell in a frame that runs nothing, loads nothing and leads nowhere.
//
// The frame's document comes from the server with a policy of its own: a document made here would inherit the page's,
// which allows no inline style. Frames are made when they come near the screen.

import { send } from "./api.js";
import { element } from "./dom.js";
import { sanitised } from "./sanitise.js";

const NEAR = "300px";
const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      entry.target.dispatchEvent(new Event("near"));
    }
  },
  { rootMargin: NEAR },
);

/** Return a place for HTML; `refused` is called with a reason if it cannot be shown. */
export function rich(html, title, refused) {
  const place = element("div", { className: "rich" });
  const show = async () => {
    const clean = sanitised(html);
    if (clean === null) return refused("It is too complex to show.");
    try {
      const { path } = await (await send("/dashboard/frames", { method: "POST", body: clean })).json();
      const frame = element("iframe", { sandbox: "", src: path, title, referrerpolicy: "no-referrer", allow: "" });
      frame.style.height = `${heightOf(html)}px`;
      place.replaceChildren(frame);
    } catch (error) {
      refused(error.message);
    }
  };
  place.addEventListener("near", show, { once: true });
  near.observe(place);
  return place;
}

/** Guess a height: nothing inside the frame can say it, for nothing runs there. The user can drag it. */
function heightOf(html) {
  const rows = html.split(/<tr\b|<br\b|<p\b|<li\b|<div\b/i, 60).length;
  const drawing = /<svg[^>]*\bheight="(\d+)(?:\.\d+)?(pt|px)?"/i.exec(html);
  const wanted = drawing === null ? 24 + rows * 24 : 24 + Number(drawing[1]) * (drawing[2] === "pt" ? 1.34 : 1);
  return Math.round(Math.min(480, Math.max(60, wanted)));
}
