"""Relative links and anchors of all Markdown resolve, and every figure names the command that made it."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "data/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
LINK = re.compile(r"!?\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^()\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """Without code blocks and code spans, whose brackets are no links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return re.sub(r"(?<!`)`[^`\n]+`(?!`)", lambda found: "`" + "x" * (len(found[0]) - 2) + "`", text)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and GitLab make them; a second one of the same words gets a number."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = "".join(c for c in words if c.isalnum() or c in " -_").strip().replace(" ", "-")
        number = 0
        while slug + (f"-{number}" if number else "") in found:
            number += 1
        found.add(slug + (f"-{number}" if number else ""))
    return found


def test_there_are_pages():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {page.name for page in PAGES}
    pages = ("quickstart", "guide", "method", "configuration", "cli", "reproduce", "study", "extend", "dependencies")
    assert {f"{name}.md" for name in pages} <= {page.name for page in PAGES}


def broken(page: Path) -> list[str]:
    """Targets that are not there; those on other hosts are taken as they are."""
    missing = []
    for target in LINK.findall(prose(page)) + [target for _, target in IMAGE.findall(prose(page))]:
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            missing.append(target)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    assert broken(page) == []


def test_every_page_can_be_found():
    """From the README, by links."""
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            targets = [(page.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose(page))]
            todo += [path for path in targets if path.suffix == ".md" and path.is_file()]
    assert sorted(set(PAGES) - seen) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_name_the_command_that_made_them(page):
    text = page.read_text()
    for found in IMAGE.finditer(text):
        below = text[found.end() :].partition("\n")[2].lstrip().split("\n\n")[0]
        assert re.search(r"`(make|wovr|python) [^`]+`", found[1] + below), (
            f"{found[2]}: expected a command in its caption"
        )


def test_broken_links_are_found(tmp_path):
    """The patterns themselves: a picture within a link, anchors, code that only looks like a link."""
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`, three\n\n[a](gone.md) [b](#one-two-three) [c](#gone) `x[i](j)`\n"
        "[![p](gone.png)](page.md#one-two-three)\n\n```\n[d](gone2.md)\n# no heading\n```\n"
    )
    assert anchors(page) == {"one-two-three"}
    assert broken(page) == ["gone.md", "#gone", "gone.png"]
