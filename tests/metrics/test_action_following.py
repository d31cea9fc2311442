"""What changed actions do to the error, against the definitions written out."""

import numpy as np
import pytest
import torch

from wovr.core.types import no_motion
from wovr.metrics.action_following import donors, measure_action_following, variant_names, variants

N, T, A, H = 12, 16, 3, 8


@pytest.fixture
def actions_NTA():
    return np.random.default_rng(0).uniform(-1, 1, (N, T, A)).astype(np.float32)


def errors(seed, n=N, **added):
    """Of every variant at random, and so much more on top."""
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.uniform(0, 9, (n, T)) + added.get(name, 0)) for name in variant_names(A)}


@pytest.mark.parametrize("n", [2, 3, 60])
def test_everyone_gives_its_actions_once_and_to_another(n):
    donor_N = donors(n, seed=5)
    assert sorted(donor_N) == list(range(n)) and all(donor_N[i] != i for i in range(n))
    assert (donor_N == donors(n, seed=5)).all()


def test_variants(actions_NTA):
    found = variants(actions_NTA, seed=5)
    assert list(found) == ["recorded", "shuffled", "zero", "negated", "dimension_0", "dimension_1", "dimension_2"]
    assert all(one.shape == actions_NTA.shape and one.dtype == np.float32 for one in found.values())
    np.testing.assert_array_equal(found["recorded"], actions_NTA)
    np.testing.assert_array_equal(found["shuffled"], actions_NTA[donors(N, seed=5)])
    assert (found["zero"] == no_motion(A)).all()
    np.testing.assert_array_equal(found["negated"], -actions_NTA)
    for d in range(A):
        one = found[f"dimension_{d}"]
        np.testing.assert_array_equal(one[..., d], -actions_NTA[..., d])
        np.testing.assert_array_equal(np.delete(one, d, axis=2), np.delete(actions_NTA, d, axis=2))


def test_values_are_their_definitions(actions_NTA):
    error_NT = errors(1, shuffled=2, zero=1, negated=3, dimension_1=0.5)
    found = measure_action_following(error_NT, actions_NTA, H, seed=0)

    def mean_of(name, i):
        return sum(error_NT[name][i].tolist()) / T

    assert found.n == N
    assert found.error["mean"] == pytest.approx(sum(mean_of("recorded", i) for i in range(N)) / N)
    for name, change in found.changes.items():
        differences = [mean_of(name, i) - mean_of("recorded", i) for i in range(N)]
        assert change.difference["mean"] == pytest.approx(sum(differences) / N)
        low, high = change.difference["ci95"]
        assert low < change.difference["mean"] < high and change.told == (low > 0)
        assert (change.told_apart.successes, change.told_apart.n) == (sum(one > 0 for one in differences), N)
        for chunk, value in enumerate(change.error_by_chunk):
            part = [error_NT[name][i, t].item() for i in range(N) for t in range(chunk * H, chunk * H + H)]
            assert value == pytest.approx(sum(part) / len(part))
    for d in range(A):
        moved = [abs(float(actions_NTA[i, t, d])) for i in range(N) for t in range(T)]
        assert found.motion_A[d] == pytest.approx(sum(moved) / len(moved))


@pytest.mark.parametrize(
    ("added", "follows"),
    [
        ({"shuffled": 3, "negated": 3}, True),
        ({"shuffled": 3}, False),
        ({"negated": 3}, False),
        ({"zero": 3, "dimension_0": 3}, False),
        ({"shuffled": -3, "negated": -3}, False),
    ],
)
def test_both_the_actions_of_others_and_negated_ones_must_be_told(added, follows, actions_NTA):
    found = measure_action_following(errors(2, **added), actions_NTA, H, seed=0)
    assert found.follows is follows
    assert all(found.changes[name].told == (more > 0) for name, more in added.items())


def test_errors_at_random_are_told_apart_in_half_of_the_replays():
    found = measure_action_following(errors(3, n=400), np.zeros((400, T, A), np.float32), H, seed=0)
    assert not found.follows
    for change in found.changes.values():
        low, high = change.told_apart.ci95
        assert low < 0.5 < high and high - low < 0.1


def test_equal_errors_are_not_told_apart(actions_NTA):
    same = torch.rand(N, T, dtype=torch.float64)
    found = measure_action_following(dict.fromkeys(variant_names(A), same), actions_NTA, H, seed=0)
    assert not found.follows
    for change in found.changes.values():
        assert change.told_apart.rate == 0 and change.difference == {"mean": 0, "ci95": [0, 0]}
    assert found.to_dict()["changes"]["negated"]["told"] is False
