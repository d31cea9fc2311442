"""What a config accepts, with hf-libero's suite map and without."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from wovr.core.errors import UserError
from wovr.envs.libero import Libero, LiberoConfig, config, suites
from wovr.episodes.libero_names import task_language

SUITES = {suite: [f"{suite}_task_{number}" for number in range(known.tasks)] for suite, known in suites.SUITES.items()}


@pytest.fixture
def known_tasks(monkeypatch):
    for module in (config, suites):
        monkeypatch.setattr(module, "task_map", lambda: SUITES)


@pytest.fixture
def not_installed(monkeypatch):
    def find():
        raise UserError("expected the package hf-libero, found none")

    for module in (config, suites):
        monkeypatch.setattr(module, "task_map", find)


def test_importing_the_package_is_light():
    code = (
        "import sys, wovr.envs.libero.worker as w; print({'mujoco', 'robosuite', 'libero', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_horizon_is_the_suites_unless_given():
    assert [LiberoConfig(suite=suite).horizon for suite in SUITES] == [220, 280, 300, 520, 400]
    assert LiberoConfig(suite="libero_10", horizon=40).horizon == 40
    assert LiberoConfig.model_validate(LiberoConfig().model_dump()) == LiberoConfig()


def test_wrong_suite_is_answered_with_the_nearest_names():
    with pytest.raises(ValidationError, match="nearest: libero_goal"):
        LiberoConfig(suite="libero-gaol")


def test_wrong_task_is_answered_with_the_nearest_names(known_tasks):
    with pytest.raises(ValidationError, match="nearest: libero_goal_task_3"):
        LiberoConfig(tasks=("libero_goal_tusk_3",))
    with pytest.raises(ValidationError, match="number below 10"):
        LiberoConfig(tasks=("10",))


def test_tasks_are_named_or_numbered(known_tasks):
    assert suites.task_numbers(SUITES, "libero_goal", LiberoConfig(tasks=(3, "libero_goal_task_1")).tasks) == [3, 1]
    assert LiberoConfig(suite="libero_90").num_tasks == 90
    assert LiberoConfig(tasks=("2",)).num_tasks == 1


def test_a_config_can_be_read_where_libero_is_not_installed(not_installed):
    assert LiberoConfig(tasks=("anything",)).num_tasks == 1


def test_simulator_says_how_to_install_libero(monkeypatch, not_installed):
    with pytest.raises(UserError, match="hf-libero"):
        Libero(LiberoConfig(tasks=("anything",), workers=1))


def test_instructions_are_the_words_of_the_name_after_the_scene():
    assert task_language("turn_on_the_stove") == "turn on the stove"
    assert task_language("KITCHEN_SCENE10_put_the_butter_in_it") == "put the butter in it"


def test_assets_that_are_not_there_are_named(tmp_path: Path, monkeypatch):
    from wovr.envs.libero.install import ASSETS_VARIABLE, find_assets

    with pytest.raises(UserError, match=f"key 'assets'.*{tmp_path}.*articulated_objects"):
        find_assets(tmp_path)
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=ASSETS_VARIABLE):
        find_assets()
    monkeypatch.delenv(ASSETS_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("wovr.envs.libero.install.find_package", lambda: tmp_path)
    with pytest.raises(UserError, match="found none; name their folder"):
        find_assets(download=False)
    assert list(tmp_path.iterdir()) == []
