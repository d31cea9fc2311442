"""The bank on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from wovr.core.checkpoint import load_tensors, save_tensors
from wovr.core.errors import UserError
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import start_state


@pytest.fixture
def bank(make_episode):
    starts = []
    for i, (step, reason, task) in enumerate(
        [(0, "first_frame", 0), (0, "first_frame", 1), (7, "gripper", 1), (12, "success_peak", 1)]
    ):
        episode = make_episode([1.0] * 20, task_id=task, init_id=i)
        starts.append(start_state(episode, f"shard_00000/demo_{i}", step, reason, memory_frames=4))
    return KeyframeBank(starts)


def test_round_trip(bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    loaded = KeyframeBank.load(tmp_path / "bank.safetensors")
    assert len(loaded) == len(bank) == 4
    for old, new in zip(bank, loaded, strict=True):
        for field in ("reference_HWC", "memory_MHWC", "memory_actions_MA", "moved_A"):
            np.testing.assert_array_equal(getattr(old, field), getattr(new, field))
            assert getattr(old, field).dtype == getattr(new, field).dtype
        for field in ("instruction", "task_id", "episode", "step", "reason", "init_id"):
            assert getattr(old, field) == getattr(new, field)


def test_sums_of_motions_are_stored_where_all_starts_have_them(bank, tmp_path):
    mixed = KeyframeBank([*bank.first_frames, *(replace(start, moved_A=None) for start in bank.keyframes)])
    for number, starts in enumerate((mixed, mixed.keyframes)):
        path = tmp_path / f"{number}.safetensors"
        starts.save(path)
        assert set(load_tensors(path)[0]) == {"reference_NHWC", "memory_NMHWC", "memory_actions_NMA"}
        loaded = KeyframeBank.load(path)
        assert [start.moved_A for start in loaded] == [None] * len(starts)
        np.testing.assert_array_equal(loaded[0].memory_actions_MA, starts[0].memory_actions_MA)


def test_selection(bank):
    assert [start.step for start in bank.keyframes] == [7, 12]
    assert [start.task_id for start in bank.first_frames] == [0, 1]
    assert [start.reason for start in bank.select(task_id=1)] == ["first_frame", "gripper", "success_peak"]
    assert [start.step for start in bank.select(reason="gripper", task_id=1)] == [7]
    assert bank.reasons() == {"first_frame": 2, "gripper": 1, "success_peak": 1}


def damaged(path, bank, change):
    bank.save(path)
    tensors, metadata = load_tensors(path)
    facts = json.loads(metadata["starts"])
    change(tensors, facts)
    save_tensors(path, tensors, starts=json.dumps(facts))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, facts: tensors.pop("memory_NMHWC"), "'memory_NMHWC'"),
        (lambda tensors, facts: tensors.update(reference_NHWC=tensors["reference_NHWC"][:2]), "4 entries"),
        (lambda tensors, facts: tensors.update(memory_actions_NMA=torch.zeros(4, 4)), "memory_actions_NMA"),
        (
            lambda tensors, facts: tensors.update(moved_NA=torch.zeros(3, 3)),
            "moved_NA: expected 2 dimensions, 4 entries",
        ),
        (lambda tensors, facts: facts.pop("reason"), "of one length"),
        (lambda tensors, facts: facts["step"].pop(), "of one length"),
        (lambda tensors, facts: facts.update(step=["7"] * 4), "of one length"),
    ],
)
def test_damage_is_one_line_that_names_the_file(bank, tmp_path, change, message):
    path = damaged(tmp_path / "bank.safetensors", bank, change)
    with pytest.raises(UserError, match=message) as error:
        KeyframeBank.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    save_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(UserError, match="expected a keyframe bank"):
        KeyframeBank.load(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="found none"):
        KeyframeBank.load(tmp_path / "missing.safetensors")
