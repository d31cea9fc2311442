"""A session from a run folder."""

from pathlib import Path

import numpy as np
import pytest

from tests.imagine.test_load import write_run
from tests.imagine.worlds import make_start
from wovr.core.run import RunFolder
from wovr.imagine.load import BANK
from wovr.kir.bank import KeyframeBank
from wovr.serve import load
from wovr.serve.load import load_session
from wovr.stages.experiment import Experiment


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = Experiment.model_validate({"codec": {"train": {"steps": 1}}, "simulator": {"horizon": 40}})
    RunFolder.open(tmp_path, config.model_dump(mode="json")).close()
    write_run(tmp_path)
    KeyframeBank([make_start(n, first=n % 2 == 0) for n in range(10)]).save(tmp_path / BANK)
    return tmp_path


def test_starts_are_some_of_each_kind_and_leave_the_bank_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STARTS", 3)
    chosen = []
    for seed in (0, 0, 1):
        with load_session(run, seed) as (session, driver):
            starts = [start.imagined for start in session.starts]
            assert [start.reason for start in starts] == ["first_frame"] * 3 + ["gripper"] * 3
            assert all(start.memory_MHWC.base is None and start.reference_HWC.base is None for start in starts)
            chosen.append([start.episode for start in starts])
            assert driver.horizon == 40 and not driver.policies
    assert chosen[0] == chosen[1] != chosen[2]


def test_what_nobody_recorded_has_no_true_world(run: Path) -> None:
    with load_session(run, 0) as (session, _):
        assert set(session.tracks) == {"imagined", "true"} and "nobody recorded" in session.why_missing("true")
        session.step(np.zeros(3, np.float32))
        assert session.shown == ("imagined",) and session.depth == 1
