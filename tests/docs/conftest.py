"""A folder as a reader of the documentation has it: `configs/`, `data/` and a finished run, here of toy size."""

import shutil
import sys

import pytest

from tests.docs.blocks import ROOT
from tests.stages.prepared import experiment, prepare
from wovr.stages import pipeline


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """`runs/demo` up to RL, whose untrained judge calls about half of what is imagined a success."""
    path = tmp_path_factory.mktemp("docs") / "demo"
    prepare(path)
    with pipeline.open_workplace(experiment(), path, plain=True) as place:
        pipeline.run_stage(place, "rl")
    return path


@pytest.fixture
def reader(finished, tmp_path, monkeypatch):
    """The working directory of someone who follows a page; modules saved there can be imported."""
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(finished, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
