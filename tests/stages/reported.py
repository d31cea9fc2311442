"""A run folder made by hand with everything in it that a report shows."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch

from tests.imagine.worlds import make_start
from wovr.core.checkpoint import write_json
from wovr.core.log import RunLog
from wovr.core.run import RunFolder
from wovr.core.train import TrainConfig
from wovr.kir.bank import KeyframeBank
from wovr.metrics.action_following import measure_action_following, variant_names
from wovr.metrics.reward_quality import measure_reward
from wovr.metrics.success import Rate
from wovr.stages import action_following, closed_loop, compare_reward, hallucination, report, world_model_eval
from wovr.stages.evaluate import TRUE
from wovr.stages.experiment import CodecStageConfig, Experiment, Workplace
from wovr.stages.replay import Replay, save_replays

SIDE, STEPS = 64, 16
INSTRUCTION = "put the <b>red</b> block on the plate"


def make_replay(seed=0, imagined_first=9, true_first=8):
    rng = np.random.default_rng(seed)
    true = np.broadcast_to(rng.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8), (STEPS + 1, SIDE, SIDE, 3)).copy()
    for t in range(STEPS + 1):
        true[t, 2 * t : 2 * t + 4] = 255
    imagined = true.copy()
    imagined[1:, :, :8] = 0
    probability_T = np.linspace(0, 1, STEPS, dtype=np.float32)
    told = (probability_T, imagined_first, true_first, probability_T**2)
    return Replay(f"shard_00000/demo_{seed}", 0, INSTRUCTION, imagined, true, *told)


def write_evaluation(run, name, successes, world=TRUE):
    episodes = [
        {"task_id": i % 2, "init_id": i // 2, "repeat": 0, "success": bool(success), "steps": 20}
        for i, success in enumerate(successes)
    ]
    tasks = {
        instruction: Rate.of(successes[task::2]).to_dict() for task, instruction in enumerate([INSTRUCTION, "lift it"])
    }
    content = {
        "policy": name,
        "world": world,
        "episodes": episodes,
        "success": Rate.of(successes).to_dict(),
        "tasks": tasks,
    }
    write_json(run / "eval" / f"{name}.json", content)


def write_metrics(run):
    log = RunLog(run)
    for step in (10, 20, 30):
        log.metrics("sft", step, {"loss": 1 / step})
        log.metrics("world_model", step, {"loss": 2 / step} | ({"validation/agreement": 0.8} if step == 30 else {}))
    for stage, updates in (("rl", 3), ("refine-1/rl", 2)):
        for update in range(1, updates + 1):
            values = {"success": 0.5, "groups": 4, "groups_failed": 1, "groups_succeeded": 0}
            log.metrics(stage, update, values | ({"entropy": 1.0} if update > 1 else {}))


def write_hallucination(run):
    measurement = hallucination.Measurement(STEPS, 8)
    replays = [make_replay(0), make_replay(1, true_first=STEPS), make_replay(2, STEPS, STEPS)]
    for replay in replays:
        measurement.add(replay)
    measured = measurement.report().to_dict()
    write_json(run / hallucination.SUMMARY, {"base": {"collect": measured}, "pace": {"collect": measured}})
    save_replays(run / hallucination.EXAMPLES, replays)


def write_closed_loop(run, world="base", start="keyframe"):
    """Three policies, imagined as they are."""

    def acted(successes):
        first_N = np.where(np.arange(8) < successes, 3, STEPS)
        return SimpleNamespace(
            lost_N=np.zeros(8, bool),
            success_step_N=first_N,
            success_N=first_N < STEPS,
            chunk_mask_NC=np.ones((8, STEPS // 8), bool),
        )

    batches = [acted(successes) for successes in (2, 4, 7)]
    found = closed_loop.compare(["base", "rl-1", "imagination"], batches, batches, STEPS, seed=0)
    measured = {"policies": list(found["by_policy"]), "worlds": {world: {start: found}}}
    write_json(run / closed_loop.SUMMARY, measured)


def write_videos(run):
    row = {"n": 9, "psnr": {"mean": 21.234, "ci95": [20.0, 22.5]}, "ssim": {"mean": 0.5, "ci95": [0.4, 0.6]}}
    measured = {
        "settings": {"metrics": ["lpips"], "batch_size": 4},
        "left_out": [],
        "hardware": "an abacus",
        "precision": "fp32",
        "worlds": {"pace": {"fps": 7.0, "episodes": {"collect": {"horizons": {"16": row | {"lpips": None}}}}}},
    }
    write_json(run / world_model_eval.SUMMARY, measured)


def write_following(run):
    """The base world model follows its actions, the refined one does not."""
    actions_NTA = np.full((5, STEPS, 2), 0.25, np.float32)
    error_NT = {
        name: torch.rand(5, STEPS, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for i, name in enumerate(variant_names(2))
    }
    worse = {name: value + 3 * (name not in ("recorded", "dimension_1")) for name, value in error_NT.items()}
    worlds = {
        world: {"collect": measure_action_following(errors, actions_NTA, 8, seed=0).to_dict()}
        for world, errors in (("base", worse), ("pace", dict.fromkeys(error_NT, error_NT["recorded"])))
    }
    write_json(run / action_following.SUMMARY, {"worlds": worlds})


def write_judges(run):
    probability = [np.array([0.2, 0.9, 0.7] * 5, np.float32)]
    found = measure_reward(probability, [np.array([False, True, False] * 5)], 0.6, 1).to_dict()
    write_json(run / compare_reward.SUMMARY, {"base": {"collect": {"classifier": {"true": found, "imagined": found}}}})


@contextmanager
def workplace(path, **sections):
    codec = CodecStageConfig(pretrained=None, train=TrainConfig(steps=1))
    experiment = Experiment.model_validate({"codec": codec, **sections})
    with RunFolder.open(path, experiment.model_dump(mode="json")) as run:
        yield Workplace(experiment, run, None, None)


def report_everything(path):
    """Make the run folder `path` and its report."""
    with workplace(path) as place:
        run = place.run
        write_evaluation(run.path, "base", [1, 0, 0, 0, 1, 0])
        write_evaluation(run.path, "imagination", [1, 1, 1, 0, 0, 1])
        write_evaluation(run.path, "pace", [1, 1, 1, 1, 1, 1])
        write_metrics(run.path)
        write_hallucination(run.path)
        write_closed_loop(run.path)
        write_videos(run.path)
        write_following(run.path)
        write_judges(run.path)
        KeyframeBank([make_start(0), make_start(1, first=True)]).save(run.path / "keyframes/bank.safetensors")
        run.add_rollouts("collect", episodes=600, steps=24000, stage="collect", key="collect/0")
        run.mark_done("sft", 60.0, {"note": "fitted"})
        run.mark_done("rl", 30.5, {})
        run.mark_done("report", 1000.0, {})  # an earlier report does not count
        report.run(place)
