"""The documents are sound: links lead somewhere, every page is in the site, programs compile and use public names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import orchestrator
from orchestrator.errors import CellblockError
from orchestrator.policy.policy import Policy
from tests.conftest import REPOSITORY
from tests.docker.snippets import programs

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")), *PAGES]
FENCE = re.compile(r"^(```+)\w*\n.*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MODULE = re.compile(r"`((?:[a-z]\w*/)+\w+\.(?:py|toml|json|txt|svg))(?:::\w+)?`")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(path: Path) -> str:
    """Return a document without its code, where brackets are no links."""
    text = re.sub(r"^ {4}.*$", "", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


@cache
def anchors(path: Path) -> set[str]:
    """Return the ids that the site and GitHub both give to a page's headings."""
    found: Counter[str] = Counter()
    ids = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE):
        slug = re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())
        ids.add(slug if not found[slug] else f"{slug}_{found[slug]}")
        found[slug] += 1
    return ids


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    """A relative link names a file that exists, and a heading that the file has."""
    for link in LINK.findall(prose(document)):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.exists(), link
        assert DOCS in target.parents or DOCS not in document.parents, f"{link} leaves the site"
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_sites_navigation() -> None:
    """mkdocs.yml lists each page of docs/ once, and no page that is not there."""
    listed = re.findall(r"(?:^|[\s:])([\w/-]+\.md)\b", (REPOSITORY / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_decision_is_in_the_index() -> None:
    """docs/decisions/index.md names each decision by its number and its heading."""
    index = (DOCS / "decisions" / "index.md").read_text()
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert f"- [{page.name[:4]}]({page.name}) {title}\n" in index


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(document: Path) -> None:
    """A path in backticks is that of a file, from the repository or from orchestrator/ on."""
    for path in MODULE.findall(FENCE.sub("", document.read_text())):
        if path.startswith("out/"):
            continue
        assert (REPOSITORY / path).is_file() or (REPOSITORY / "orchestrator" / path).is_file(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_test_that_is_named_exists(document: Path) -> None:
    """A promise names its test by file and function; both are there."""
    for file, test in re.findall(r"`(tests/\w+/test_\w+\.py)::(test_\w+)`", document.read_text()):
        assert f"def {test}(" in (REPOSITORY / file).read_text(), test


def test_every_promise_of_the_specification_names_its_test() -> None:
    """Each row of docs/specification.md has a promise and one test."""
    rows = re.findall(r"^\| (?!promise|-)(.*) \|$", (DOCS / "specification.md").read_text(), re.MULTILINE)
    assert len(rows) >= 25
    for row in rows:
        assert re.fullmatch(r"[A-Z\d].*\. \| `tests/[\w/]+\.py::test_\w+`", row), row


@pytest.mark.parametrize("document", [page for page in DOCUMENTS if programs(page)], ids=name_of)
def test_every_program_compiles_and_imports_public_names(document: Path) -> None:
    """Readers can copy it: it is a whole program, and what it imports of Cellblock is public."""
    for source in programs(document):
        tree = ast.parse(source)
        compile(tree, name_of(document), "exec")
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            assert not node.module.startswith("orchestrator"), "the import name for users is cellblock"
            if node.module == "cellblock":
                assert {alias.name for alias in node.names} <= set(orchestrator.__all__)


def test_every_public_name_is_in_the_reference() -> None:
    """docs/reference/ has each name of ``orchestrator.__all__``; the errors are those of their module."""
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    listed = set(re.findall(r"^::: orchestrator\.(\w+)$", pages, re.MULTILINE))
    errors = {name for name in dir(orchestrator.errors) if not name.startswith("_")}
    assert "errors" in listed
    assert set(orchestrator.__all__) - listed - errors == set()


def test_every_policy_in_the_documents_is_sound(tmp_path: Path) -> None:
    """Each TOML block is a policy that loads. Its folder of data is left out, and its lock file is there."""
    (tmp_path / "packages.lock.txt").write_text(f"emoji==2.14 --hash=sha256:{'0' * 64}\n")
    found = 0
    for document in DOCUMENTS:
        for text in re.findall(r"^```toml\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
            file = tmp_path / f"policy-{found}.toml"
            file.write_text(re.sub(r'^\w+ = "/srv/.*$', "", text, flags=re.MULTILINE))
            Policy.load(str(file))
            found += 1
    assert found >= 4


def subclasses(kind: type[CellblockError]) -> set[type[CellblockError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_every_error_is_in_the_table_of_errors() -> None:
    """docs/tasks/errors.md has a row for each class that callers can meet, with the code that is stable."""
    page = (DOCS / "tasks" / "errors.md").read_text()
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", page, re.MULTILINE)}
    errors = {error.__name__: error for error in subclasses(CellblockError) if error is not CellblockError}
    assert rows.keys() == {name for name, error in errors.items() if error.__module__ == "orchestrator.errors"}
    for name, row in rows.items():
        code = getattr(errors[name], "code", None)
        assert code is None or f"| `{code}` |" in row, name
