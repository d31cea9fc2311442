"""Which commit the code runs from, and when nobody can say."""

import subprocess

import pytest

from wovr.core.source import UNKNOWN, commit, source


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is not a commit")
    return package


def test_a_checkout_has_a_commit(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert commit(checkout) == head
    (checkout / "__init__.py").write_text("changed = True")
    assert commit(checkout) == f"{head}-dirty"


def test_a_repository_around_an_installed_package_is_not_its_own(checkout):
    installed = checkout / "site-packages" / "wovr"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) == UNKNOWN


def test_without_git_the_commit_is_unknown(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) == UNKNOWN


def test_versions_are_all_there():
    assert list(source()) == ["wovr", "commit", "torch", "python"] and all(source().values())
