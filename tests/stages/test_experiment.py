"""What an experiment's file may say of its simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from wovr.core.errors import UserError
from wovr.stages.pipeline import load_experiment

CONFIG = Path(__file__).parents[2] / "configs" / "tabletop.yaml"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("simulator={kind: mujoco}", "key 'simulator': expected kind tabletop, libero or recorded, found"),
        ("simulator={kind: libero, image_siz: 64}", "unknown key 'simulator.image_siz'; did you mean 'image_size'?"),
        ("simulator={kind: libero, suite: libero_gaol}", "key 'simulator.suite': "),
        ("simulator={image_siz: 64}", "unknown key 'simulator.image_siz'; did you mean 'image_size'?"),
        ("simulator={kind: recorded, horizon: 1}", "key 'simulator.horizon': "),
    ],
)
def test_what_is_wrong_with_a_simulator_is_said_of_its_kind(override: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(CONFIG, [override])
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_section_without_a_kind_is_the_tabletops() -> None:
    assert load_experiment(CONFIG, ["simulator.horizon=40"]).simulator.kind == "tabletop"
