"""Files that people and their hosts read beside the code: citation, changelog, issue forms."""

import re
import tomllib

import pytest
import yaml

from tests.docs.blocks import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def test_the_citation_says_what_the_package_says():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert {"message", "title", "authors", "version", "license", "abstract"} <= found.keys()
    assert (found["version"], found["license"]) == (PROJECT["version"], PROJECT["license"])
    assert found["keywords"] == PROJECT["keywords"]


def test_the_paper_is_cited_alike():
    """In CITATION.cff and in the README."""
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    bibtex = " ".join((ROOT / "README.md").read_text().split())
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert f"author = {{{authors}}}" in bibtex
    assert f"title = {{{paper['title']}}}" in bibtex
    assert f"year = {{{paper['year']}}}" in bibtex
    assert f"note = {{{paper['identifiers'][0]['value']}}}" in bibtex


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    titles = re.findall(r"^## (.+)$", text, re.M)
    assert titles[0] == "[Unreleased]" and all(
        re.match(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d$", one) for one in titles[1:]
    )
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }
    released = [re.match(r"\[([\d.]+)\]", one)[1] for one in titles[1:]]
    assert PROJECT["version"] in released or PROJECT["version"] in text, "the version that comes is named"


def test_there_are_forms():
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path):
    """By GitHub's syntax of issue forms."""
    form = yaml.safe_load(path.read_text())
    assert (
        form.keys() <= {"name", "description", "title", "labels", "body"}
        and {"name", "description", "body"} <= form.keys()
    )
    inputs = [one for one in form["body"] if one["type"] != "markdown"]
    assert inputs and len({one["id"] for one in inputs}) == len(inputs)
    for one in form["body"]:
        assert one["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert one["attributes"].get("label" if one in inputs else "value")
        assert one.get("validations", {}).keys() <= {"required"}
    assert any(one.get("validations", {}).get("required") for one in inputs)
