"""A toy run that is ready for RL, whose untrained classifier calls about half of the imagined rollouts a success."""

import shutil
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.stages.conftest import CONFIG, TOY
from wovr.core.checkpoint import save_model
from wovr.core.config import load_config
from wovr.core.log import read_records
from wovr.imagine.load import DIT, REWARD, load_dit, load_reward, save_dit
from wovr.stages import pipeline
from wovr.stages.experiment import Experiment
from wovr.stages.groups import Imagination
from wovr.stages.policies import acting_policy
from wovr.stages.sft import POLICY

STAGES = ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes")
SIGNAL = (
    "world_model.mirror=[]",  # with the toy world that comes of it, one update would have no signal
    "rl.groups=4",
    "rl.updates=5",
    "rl.rollout_batch=2",  # one group: what is computed side by side is then the same for any number of ranks
    "rl.precision=fp32",
    "rl.update.grpo={group_size: 2, min_successes: 0, min_failures: 0, gamma: 0.99, entropy_bonus: 0.01}",
    "rl.update.optim={lr: 3.0e-4, precision: fp32}",
    "rl.update.epochs=1",  # two optimiser steps
)
"""Over TOY: every update has groups that carry a signal."""


def experiment(*overrides: str) -> Experiment:
    return load_config(Experiment, CONFIG, [*TOY, *SIGNAL, *overrides])


def prepare(path: Path, *overrides: str) -> None:
    """Make the run folder `path`, all stages before RL done."""
    with pipeline.open_workplace(experiment(*overrides), path, plain=True) as place:
        for name in STAGES:
            pipeline.run_stage(place, name)
        dit, context, flow = load_dit(path / DIT)
        torch.manual_seed(0)
        for parameter in dit.parameters():  # or actions would hardly matter, and groups be of one outcome
            parameter.data += 0.2 * torch.randn_like(parameter)
        save_dit(path / DIT, dit, context, flow)
        imagination = Imagination.load(place, path)
        batch = imagination.groups(acting_policy(place, path / POLICY), 999)
        classifier = load_reward(path / REWARD)
        classifier.calibrated(threshold=float(np.median(batch.probability_NT.max(axis=1))), hold=1)
        save_model(path / REWARD, classifier, classifier.config)


def ready(prepared: Path, path: Path, config: Experiment) -> Path:
    """A copy of a run folder, as one of an experiment that differs in RL alone."""
    shutil.copytree(prepared, path)
    (path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def updates(path: Path) -> list[dict[str, float]]:
    """Logs of every update, without times and memory."""
    lines = [line for line in read_records(path / "metrics.jsonl") if line["stage"] == "rl"]
    skipped = ("time", "stage", "seconds_", "memory_", "frames_per_second")
    return [{key: value for key, value in line.items() if not key.startswith(skipped)} for line in lines]
