"""A whole experiment at toy size: nothing is learned, everything runs."""

from pathlib import Path

import pytest

from wovr.core.config import load_config
from wovr.stages.experiment import Experiment

CONFIG = Path(__file__).parents[2] / "configs" / "tabletop.yaml"
TOY = (
    "simulator.horizon=32",
    "sft.demonstrations=2",
    "sft.train={steps: 5, batch_size: 8}",
    "collect.episodes=16",
    "collect.held_out=0.2",
    "codec.pretrained=null",
    "codec.model={channels: 4, frame_width: 8, group_width: 16, blocks: 1}",
    "codec.train={steps: 3, batch_size: 2}",
    "reward.train={steps: 5, batch_size: 8}",
    "world_model.pretrained=null",
    "world_model.dit={width: 32, depth: 1, heads: 2, ffn_width: 64, channels: 4}",
    "world_model.train={steps: 4, batch_size: 4, checkpoint_every: 2}",
    "world_model.loss.copies=1",
    "world_model.own_memory.train={steps: 3, batch_size: 4, checkpoint_every: 1}",
    "decoder.train={steps: 2, batch_size: 4}",
    "rl.updates=4",
    "rl.groups=2",
    "rl.checkpoint_every=1",
    "rl.update.grpo={group_size: 2, min_successes: 0, min_failures: 0}",
    "refine.episodes=8",
    "refine.world_steps=2",
    "refine.reward_steps=2",
    "refine.decoder_steps=2",
    "refine.updates=1",
    "eval.initial_states=1",
    "eval.repeats=1",
)


@pytest.fixture(scope="session")
def toy():
    def experiment(*overrides: str) -> Experiment:
        return load_config(Experiment, CONFIG, [*TOY, *overrides])

    return experiment
