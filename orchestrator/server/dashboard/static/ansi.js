// Text with terminal colours as spans. Links, titles and cursor movements of a terminal are left out.

import { AnsiUp } from "./vendor/ansi_up/ansi_up.js";
import { visible } from "./visible.js";

const COMMANDS = /\u001b\][^\u0007\u001b\n]*(?:\u0007|\u001b\\)/g; // titles and links: their text stays
const MOST = 2000; // coloured pieces of one text

/** Return a text as a fragment. */
export function coloured(raw) {
  const text = raw.includes("\r") ? raw.split("\n").map(overwritten).join("\n") : raw;
  const fragment = document.createDocumentFragment();
  if (!text.includes("\u001b")) {
    fragment.append(visible(text));
    return fragment;
  }
  const reader = new AnsiUp();
  reader.append_buffer(text.replace(COMMANDS, "").replaceAll("\u001b]", "\u241b]"));
  for (let pieces = 0; pieces < MOST * 2; pieces += 1) {
    const packet = reader.get_next_packet();
    if (packet.kind === KINDS.EOS || packet.kind === KINDS.Incomplete) return fragment;
    if (packet.kind === KINDS.Text) fragment.append(span(reader.with_state(packet)));
    else if (packet.kind === KINDS.SGR) reader.process_ansi(packet);
  }
  fragment.append(visible(reader._buffer /* what it has not read */.replace(/\u001b\[[\d;]*m/g, "")));
  return fragment;
}

/** Return what a terminal shows of a line: what follows its last carriage return. */
function overwritten(line) {
  const whole = line.endsWith("\r") ? line.slice(0, -1) : line;
  return whole.slice(whole.lastIndexOf("\r") + 1);
}

const KINDS = { EOS: 0, Text: 1, Incomplete: 2, ESC: 3, Unknown: 4, SGR: 5, OSCURL: 6 }; // ansi_up's own numbers

function span(piece) {
  const classes = [
    piece.bold && "bold",
    piece.italic && "italic",
    piece.underline && "underline",
    piece.fg && named(piece.fg, "fg"),
    piece.bg && named(piece.bg, "bg"),
  ].filter(Boolean);
  if (classes.length === 0) return visible(piece.text);
  const made = document.createElement("span");
  made.className = classes.join(" ");
  made.append(visible(piece.text));
  return made;
}

/** Return the class of a colour. Only named ones can be read on a light and on a dark page: others become the nearest. */
function named(colour, ground) {
  const name = colour.class_name === "truecolor" ? hue(colour.rgb) : colour.class_name.replace(/^ansi-(bright-)?/, "");
  return name && name !== "black" && name !== "white" ? `ansi-${name}-${ground}` : "";
}

function hue(rgb) {
  const [least, most] = [Math.min(...rgb), Math.max(...rgb)];
  if (most - least < 40) return "";
  const [red, green, blue] = rgb.map((value) => value > (least + most) / 2);
  const bits = (red ? 1 : 0) + (green ? 2 : 0) + (blue ? 4 : 0);
  return ["", "red", "green", "yellow", "blue", "magenta", "cyan", ""][bits];
}
