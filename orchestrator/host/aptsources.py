"""Read this host's apt sources, in both of their formats, and derive other sources from them.

So the project names no mirror: it uses the one that the host's administrator chose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

APT = Path("/etc/apt")

_ONE_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>[^#]*)")
_PLACES = {"types", "uris", "suites", "components", "enabled"}


@dataclass(frozen=True)
class AptSource:
    """A source of binary packages.

    Attributes:
        options: all other fields, such as Signed-By, by their deb822 names, with unchanged values.
    """

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """Return the source as a deb822 stanza."""
        places = {
            "Types": "deb",
            "URIs": " ".join(self.uris),
            "Suites": " ".join(self.suites),
            "Components": " ".join(self.components),
        }
        return "".join(f"{name}: {value}\n" for name, value in (places | self.options).items())


def read(folder: Path = APT) -> list[AptSource]:
    """Return all enabled sources of binary packages, in the order in which apt reads them."""
    found: list[AptSource] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            found.extend(_stanzas(text) if path.suffix == ".sources" else _lines(text))
    return found


def of_debian(sources: Iterable[AptSource], codename: str) -> list[AptSource]:
    """Return the distribution's own sources, reduced to its release, updates and security suites.

    A third party may name its suite after the release too. The distribution's sources are those with its archive
    keyring or, if no source names one, those whose mirror also has the updates suite.
    """
    wanted = (codename, f"{codename}-updates", f"{codename}-security")
    candidates = [
        AptSource(source.uris, tuple(suite for suite in source.suites if suite in wanted), ("main",), source.options)
        for source in sources
        if "main" in source.components and any(suite in wanted for suite in source.suites)
    ]
    signed = [source for source in candidates if "-archive-keyring" in source.options.get("Signed-By", "")]
    if signed:
        return signed
    homes = {uri for source in candidates if f"{codename}-updates" in source.suites for uri in source.uris}
    own = [source for source in candidates if homes.intersection(source.uris) or wanted[2] in source.suites]
    return own or candidates


def of_release(sources: Iterable[AptSource], codename: str, other: str) -> list[AptSource]:
    """Return a release's sources with another release in its place, from the same mirrors and with the same keys."""
    return [
        replace(source, suites=tuple(suite.replace(codename, other, 1) for suite in source.suites))
        for source in sources
    ]


def backports(sources: Sequence[AptSource], codename: str) -> AptSource | None:
    """Return the distribution's backports source, or None if one is enabled or no mirror is known."""
    suite = f"{codename}-backports"
    if any(suite in source.suites for source in sources):
        return None
    for source in of_debian(sources, codename):
        if codename in source.suites:
            return AptSource(source.uris, (suite,), ("main",), source.options)
    return None


def _lines(text: str) -> Iterator[AptSource]:
    names = {"signed-by": "Signed-By", "arch": "Architectures", "trusted": "Trusted"}
    for line in text.splitlines():
        match = _ONE_LINE.match(line.strip())
        if match is None:
            continue
        pairs = [option.partition("=") for option in (match["options"] or "").split()]
        options = {names.get(name.lower(), name.title()): value.replace(",", " ") for name, _, value in pairs}
        yield AptSource((match["uri"],), (match["suite"],), tuple(match["components"].split()), options)


def _stanzas(text: str) -> Iterator[AptSource]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields = _fields(stanza)
        places = {name.lower(): value.split() for name, value in fields.items() if name.lower() in _PLACES}
        if "deb" not in places.get("types", ()) or places.get("enabled", ["yes"])[0].lower() in ("no", "false", "0"):
            continue
        yield AptSource(
            tuple(places.get("uris", ())),
            tuple(places.get("suites", ())),
            tuple(places.get("components", ())),
            {name: value for name, value in fields.items() if name.lower() not in _PLACES},
        )


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1].isspace() and name:
            fields[name] += f"\n{line}"
        elif ":" in line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields
