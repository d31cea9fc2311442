"""Initial states are read from files that come from outside."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from wovr.core.errors import UserError
from wovr.envs.libero.suites import read_states


class Code:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_states_are_read_as_torch_saved_them(tmp_path):
    states = np.random.default_rng(0).normal(size=(50, 71))
    torch.save(states, tmp_path / "task.pruned_init")
    np.testing.assert_array_equal(read_states(tmp_path / "task.pruned_init"), states)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_code_in_a_file_of_states_is_not_executed(tmp_path, write):
    path, trace = tmp_path / "task.pruned_init", tmp_path / "trace"
    write(Code(trace), path)
    with pytest.raises(UserError, match=r"task\.pruned_init: expected initial states"):
        read_states(path)
    assert not trace.exists()


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 3), np.float32), [1.0], {"states": np.zeros((2, 2))}])
def test_other_values_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "task.pruned_init")
    with pytest.raises(UserError, match="expected"):
        read_states(tmp_path / "task.pruned_init")


def test_missing_and_damaged_files_are_named(tmp_path):
    (tmp_path / "damaged").write_bytes(b"PK\x03\x04 and no more")
    for name in ("damaged", "missing"):
        with pytest.raises(UserError, match=name):
            read_states(tmp_path / name)
