// Shows characters that change or hide the text around them, such as those that reverse the direction of writing.

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/u;
const MOST = 500; // such characters that are shown in one text; further ones become one character each

/** Return a text as a fragment of text nodes and names of hidden characters. */
export function visible(text) {
  const fragment = document.createDocumentFragment();
  let rest = text;
  for (let shown = 0; rest !== ""; shown += 1) {
    const at = shown < MOST ? rest.search(HIDDEN) : -1;
    if (at < 0) break;
    fragment.append(rest.slice(0, at), name(rest.charCodeAt(at)));
    rest = rest.slice(at + 1);
  }
  fragment.append(rest.replace(new RegExp(HIDDEN, "gu"), "\ufffd"));
  return fragment;
}

function name(code) {
  const made = document.createElement("span");
  made.className = "hidden-character";
  made.textContent = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  return made;
}
