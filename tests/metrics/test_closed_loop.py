import numpy as np
import pytest

from wovr.metrics.closed_loop import correlation, success_by_depth

RNG = np.random.default_rng(0)
CHANCE_P1 = np.linspace(0.2, 0.8, 6)[:, None]


def test_it_is_pearsons_of_the_rates() -> None:
    uniform_PN = RNG.random((2, 6, 40))
    imagined_PN, true_PN = uniform_PN < CHANCE_P1
    found = correlation(imagined_PN, true_PN, seed=0)
    assert found.value == pytest.approx(np.corrcoef(imagined_PN.mean(1), true_PN.mean(1))[0, 1], abs=1e-12)
    assert (found.policies, found.starts) == (6, 40)


@pytest.mark.parametrize("starts", [50, 400])
def test_the_interval_holds_the_value_and_narrows_with_more_starts(starts: int) -> None:
    imagined_PN, true_PN = RNG.random((2, 6, starts)) < CHANCE_P1
    found = correlation(imagined_PN, true_PN, seed=1)
    low, high = found.ci95
    assert low < found.value <= high and low > (0.5 if starts == 50 else 0.9)


def test_a_world_where_everything_gets_worse_is_found_out() -> None:
    imagined_PN, true_PN = RNG.random((2, 6, 200)) < np.stack([CHANCE_P1, CHANCE_P1[::-1]])
    assert correlation(imagined_PN, true_PN, seed=0).ci95[1] < -0.9


def test_without_spread_or_with_two_policies_there_is_none() -> None:
    uniform_PN = RNG.random((6, 40)) < CHANCE_P1
    for pair in ((np.ones((6, 40), bool), uniform_PN), (uniform_PN[:2], uniform_PN[:2])):
        assert correlation(*pair, seed=0).to_dict() == {
            "value": None,
            "ci95": None,
            "policies": len(pair[0]),
            "n": 40,
        }


def test_success_adds_up_by_depth() -> None:
    assert success_by_depth(np.array([0, 7, 8, 24, 24]), 24, 8) == [0.4, 0.6, 0.6]
