import json
import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from wovr.core.config import load_config
from wovr.core.errors import UserError
from wovr.core.footprint import Footprint, Shapes
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.reward.joint import RewardHead, RewardHeadConfig
from wovr.stages.experiment import Experiment
from wovr.stages.pipeline import STAGES
from wovr.stages.plan import advise, make_plan
from wovr.stages.plan_machine import GB, Machine, Trained, step_seconds, this_machine, training_memory
from wovr.stages.plan_networks import Networks
from wovr.stages.plan_parts import Part
from wovr.stages.plan_stages import Stages

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def libero() -> Networks:
    """Of the full size; the overlays share what was found."""
    return Networks(load_config(Experiment, CONFIGS / "libero_goal.yaml"), gpu=True)


def changed(experiment: Experiment, *overrides: str) -> Experiment:
    raw = experiment.model_dump()
    for override in overrides:
        key, _, value = override.partition("=")
        *parents, leaf = key.split(".")
        node = raw
        for parent in parents:
            node = node[parent]
        node[leaf] = yaml.safe_load(value)
    return Experiment.model_validate(raw)


# Trainings of one process on a CPU, as the stages do them: the most memory beyond what was there before.
MEASURE = r"""
import ctypes, gc, json, re, sys, torch
from pathlib import Path
from wovr.codec.conv import ConvCodec
from wovr.codec.conv_training import codec_loss
from wovr.core.config import load_config
from wovr.core.dist import Dist
from wovr.core.train import Trainer
from wovr.dit.context import layout
from wovr.dit.model import ActionDiT
from wovr.stages.experiment import Experiment
from wovr.stages.latents import world_loss

torch.set_num_threads(1)

def status(key):
    return 1024 * int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

def measured(work, *arguments):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work(*arguments)
    return status("VmHWM") - before

def train(model, loss, batch, settings):
    trainer = Trainer(model, settings, Dist(), settings.steps)
    for _ in range(2):
        trainer.step(batch, loss, settings.accumulate)

def world_model(config):
    settings, window = config.world_model, layout(config.world_model.context, 8)
    B, cells = settings.train.batch_size, config.simulator.image_size // 8
    shape = (B, window.frames, settings.dit.channels, cells, cells)
    batch = {
        "latents_BLChw": torch.randn(shape),
        "actions_BTA": torch.randn(B, window.actions, 3),
        "noise_BFChw": torch.randn(shape),
        "uniform_BK": torch.rand(B, 1),
        "memory_uniform_B": torch.rand(B),
    }
    loss = world_loss(settings.context, settings.flow, window, settings.loss)
    train(ActionDiT(settings.dit, window), loss, batch, settings.train)

def codec(config):
    B, size = config.codec.train.batch_size, config.simulator.image_size
    batch = {
        "frames_BFHWC": torch.randint(0, 256, (B, 4, size, size, 3), dtype=torch.uint8),
        "noise_BChw": torch.randn(B, config.codec.model.channels, size // 8, size // 8),
        "weight_BHW": torch.ones(B, size, size),
    }
    train(ConvCodec(config.codec.model), codec_loss, batch, config.codec.train)

tiny, *cases = (load_config(Experiment, Path(sys.argv[1]), changes) for changes in json.loads(sys.argv[2]))
for work in (world_model, codec):
    work(tiny)  # what a first call takes is no part of it
print(json.dumps([[measured(world_model, case), measured(codec, case)] for case in cases]))
"""
ONE_PHASE = (
    "codec.pretrained=null",
    "world_model.pretrained=null",
    "world_model.own_memory=null",
    "world_model.loss.copies=1",
)
SMALL = "world_model.dit={width: 32, depth: 1, heads: 2, ffn_width: 64, channels: 12}"
TINY = (
    *ONE_PHASE,
    "world_model.dit={width: 32, depth: 1, heads: 2, ffn_width: 32, channels: 12}",
    "codec.model={frame_width: 8, group_width: 16}",
    "codec.train={steps: 9, batch_size: 2, precision: bf16}",
)
MANY_ACTIVATIONS = (
    *ONE_PHASE,
    "simulator.image_size=128",
    "world_model.dit={width: 96, depth: 6, heads: 3, ffn_width: 192, channels: 12}",
    "world_model.train={steps: 9, batch_size: 5, precision: fp32}",
    "codec.train={steps: 9, batch_size: 4, precision: fp32}",
)
LARGE_STATES = (
    *ONE_PHASE,
    "world_model.dit={width: 512, depth: 3, heads: 8, ffn_width: 2048, channels: 12}",
    "world_model.train={steps: 9, batch_size: 2, ema_decay: 0.9, precision: fp32}",
    "codec.model={frame_width: 64, group_width: 512}",
    "codec.train={steps: 9, batch_size: 4, accumulate: 2, ema_decay: 0.9, precision: bf16}",
)


def test_memory_is_within_15_percent_of_what_a_process_takes() -> None:
    config, cases = CONFIGS / "tabletop.yaml", (MANY_ACTIVATIONS, LARGE_STATES)
    # glibc takes large blocks from the system one by one, and gives them back: what it would keep is not the process's.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    arguments = [str(config), json.dumps([TINY, *cases])]
    run = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    for changes, measured in zip(cases, json.loads(run.stdout), strict=True):
        experiment = load_config(Experiment, config, changes)
        stages = Stages(experiment, Machine(gpus=0), Networks(experiment, gpu=False))
        assert experiment.codec.train is not None
        trainings = {"world_model": experiment.world_model.train, "codec": experiment.codec.train}
        for (name, settings), taken in zip(trainings.items(), measured, strict=True):
            assert taken > 1e8, "enough to be seen among a process's other needs"
            assert stages.training(name, settings).memory.total == pytest.approx(taken, rel=0.15), name


def test_the_published_network(libero: Networks) -> None:
    """Figures of the published checkpoint, and of a forward pass by formula."""
    assert sum(libero.parameters("world_model").values()) == 5_025_334_464
    assert sum(libero.codec(1, bf16=True).parameters.values()) == pytest.approx(704.7e6, rel=1e-4)
    with Shapes(gpu=True) as shapes:
        dit = libero.dit()
        shapes.place(dit, torch.bfloat16)
        window = torch.zeros(1, 4, 48, 16, 16), torch.zeros(1, 4), torch.zeros(1, 13, 7)
        whole = shapes.inference(lambda: dit(*window), [dit]).flops
    tokens, D = 256, 3072
    # 2.298 TFLOP count the timestep's layers for every token, where here each latent frame has them once.
    per_token = 2 * (256 * D + D * D + 6 * D * D)
    assert whole + (tokens - 4) * per_token == pytest.approx(2.298e12, rel=0.01)


def test_activations_of_the_published_blocks(libero: Networks) -> None:
    depth, found = 6, {}
    for kind in ("none", "selective", "full"):
        networks = Networks(
            changed(libero.experiment, f"world_model.checkpointing={kind}", f"world_model.dit.depth={depth}"), gpu=True
        )
        step = networks.step("world_model", 8, bf16=True, narrow=True).footprint
        found[kind] = step.peak(0) / (8 * 256 * depth), step.flops
    (none, flops), (selective, _), (full, repeated) = found.values()
    # By formula 2 (16 width + 2 ffn) bytes per token. Here the normalised queries and keys are kept in fp32 as well.
    assert none == pytest.approx(2 * (16 * 3072 + 2 * 14336) + 4 * 3 * 3072, rel=0.2)
    assert 2 * full < selective < 0.6 * none
    assert repeated == pytest.approx(4 / 3 * flops, rel=0.02), "the forward pass of the blocks once more"


@pytest.mark.parametrize(
    ("machine", "weights", "gradients", "optimizer", "activations", "host"),
    [
        (Machine(8), 40, 40, 80, 1, 0),
        (Machine(8, zero=1), 20, 20, 15, 5, 0),  # fp32 gradients of its share, once the activations are gone
        (Machine(8, zero=2), 20, 2.5, 15, 7.5 + 0.4, 0),  # and the bucket that is reduced
        (Machine(8, zero=3), 2.5, 2.5, 15, 7.5 + 0.4 + 2, 0),  # and the weights that are gathered
        (Machine(1, zero=2), 20, 20, 120, 40, 0),
        (Machine(1, zero=2, offload=True), 20, 0, 0, 10 + 0.4, 160),
        (Machine(8, zero=2, offload=True), 20, 0, 0, 10 + 0.4, 160),
    ],
)
def test_what_zero_splits(
    machine: Machine, weights: float, gradients: float, optimizer: float, activations: float, host: float
) -> None:
    """Of 10 B parameters, in GB. 10 GB of activations go as the gradients come."""
    P = 10**10
    step = Footprint(flops=10**15, levels=((0, P), ((2 if machine.zero else 4) * P, P // 10)))
    found = training_memory(machine, Trained(P, 0, 8 * P, averaged=False, bf16=True, accumulate=1), step)
    expected = (weights, gradients, optimizer, activations, 0, host)
    assert [value / GB for value in astuple(found)] == pytest.approx(expected)
    assert found.total / GB == pytest.approx(sum(expected) - host)


def test_the_average_lies_with_the_optimizer_and_micro_batches_with_all_gradients() -> None:
    P, machine = 10**10, Machine(8, zero=2)
    step = Footprint(flops=10**15, levels=((0, P), (2 * P, P // 10)))
    plain, more = (
        training_memory(machine, Trained(P, 0, 8 * P, averaged=many > 1, bf16=True, accumulate=many), step)
        for many in (1, 2)
    )
    assert more.optimizer - plain.optimizer == 4 * P / 8
    assert more.gradients - plain.gradients == 4 * P / 8, "they are summed in fp32"
    assert more.activations - plain.activations == 2 * P / 8, "and there while all activations are"


def test_time_is_work_and_what_travels() -> None:
    P = 10**10
    model, step = Trained(P, 0, 8 * P, averaged=False, bf16=True, accumulate=1), Footprint(10**15, ((0, 0),))
    alone = step_seconds(Machine(1, zero=2, tflops=100), model, step)
    assert alone == pytest.approx(10**15 / (100e12 * 0.3) + 28 * P / 4300e9)
    assert step_seconds(Machine(1, zero=2, tflops=200), model, step) < alone
    assert step_seconds(Machine(8, zero=3, tflops=100), model, step) > step_seconds(
        Machine(8, 0, 2, tflops=100), model, step
    )
    assert step_seconds(Machine(1, zero=2, offload=True, tflops=100), model, step) > alone + 2.8


def test_a_plan_for_this_cpu_counts_what_lies_in_its_memory() -> None:
    experiment = load_config(Experiment, CONFIGS / "tabletop.yaml", [*ONE_PHASE[1:], SMALL])
    machine = this_machine(0, 80.0, zero=0, offload=False, tflops=None)
    plan = make_plan(experiment, machine)
    assert [stage.name for stage in plan.stages] == [name for name in STAGES if name != "report"]
    for stage in plan.stages:
        assert stage.flops > 0 and stage.seconds > 0 and plan.needs(stage) > 0, stage.name
    frames = (600 + 4 * 15) * 49 * 64 * 64 * 3
    reward = next(stage for stage in plan.stages if stage.name == "reward")
    assert plan.needs(reward) > 2 * frames, "episodes as they are, and as the codec gives them back"


def test_frames_take_the_memory_that_they_may_and_the_disk_the_rest() -> None:
    experiment = load_config(Experiment, CONFIGS / "tabletop.yaml", [*ONE_PHASE[1:], SMALL])
    networks = Networks(experiment, gpu=False)
    frames = (600 + 4 * 15) * 49 * 64 * 64 * 3

    def reward(gigabytes: float, gpus: int) -> tuple[float, float]:
        limited = changed(experiment, f"frame_memory={gigabytes}")
        stages = Stages(limited, Machine(gpus=gpus), networks)
        plan = next(stage for stage in stages.all() if stage.name == "reward")
        return max(part.memory.host for part in plan.parts), plan.disk

    (none, disk), (passing, whole) = reward(4, 1), reward(0, 1)
    assert none - passing == 2 * frames and whole - disk == frames, "true frames lie on disk already"
    host, disk_of_some = reward(0.5, 1)
    assert host - passing == 0.5 * GB and disk_of_some - disk == 2 * frames - 0.5 * GB
    assert reward(4, 2)[1] == whole, "ranks share what they reconstruct by way of the disk"


def test_mirror_images_have_latents_of_their_own() -> None:
    experiment = load_config(Experiment, CONFIGS / "tabletop.yaml", [*ONE_PHASE[1:], SMALL])
    networks = Networks(experiment, gpu=False)

    def disk(mirror: str) -> float:
        stages = Stages(changed(experiment, f"world_model.mirror={mirror}"), Machine(gpus=1), networks)
        return next(stage for stage in stages.all() if stage.name == "world_model").disk

    assert disk("[0]") - disk("[]") == (600 + 4 * 15) * 49 * (2 * 12 * 8 * 8)  # bf16, 12 channels, 8 x 8 cells


def test_recipes_for_small_gpus_fit(libero: Networks) -> None:
    """Of 24 and 48 GB, with the optimiser's states in host memory; without these overlays they do not."""
    for size in (24, 48):
        machine = Machine(1, size * GB, zero=2, offload=True)
        overlaid = load_config(Experiment, CONFIGS / f"libero_goal_{size}gb.yaml")
        networks = Networks(overlaid, gpu=True)  # of another policy
        assert not make_plan(overlaid, machine, networks).too_large
        assert make_plan(overlaid, replace(machine, offload=False), networks).too_large, "they need the host"
        assert make_plan(libero.experiment, machine, libero).too_large


@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
def test_recipes_of_the_paper_fit_eight_gpus_of_80_gb(suite: str, libero: Networks) -> None:
    experiment = load_config(Experiment, CONFIGS / f"libero_{suite}.yaml")
    plan = make_plan(experiment, Machine(8, 80 * GB, zero=2), libero)
    assert not plan.too_large
    frames = experiment.collect.episodes * (experiment.simulator.horizon + 1)
    collect = next(stage for stage in plan.stages if stage.name == "collect")
    assert collect.disk == frames * 256 * 256 * 3


@pytest.fixture(scope="module")
def shallow() -> Networks:
    """A recipe whose network has 2 blocks of 30, 443 M parameters, and the embedded policy."""
    overrides = ["world_model.dit.depth=2", "rl.rollout_batch=1", "world_model_eval.batch_size=1"]
    overrides.append(f"policy={{action_low: {[-1] * 7}, action_high: {[1] * 7}}}")
    return Networks(load_config(Experiment, CONFIGS / "libero.yaml", overrides), gpu=True)


@pytest.mark.parametrize(
    ("machine", "overrides", "helps"),
    [
        (Machine(8, 9 * GB), (), {"--zero"}),
        (Machine(1, 9 * GB), (), {"--zero", "--offload"}),
        (Machine(1, 16 * GB), ("rl.rollout_batch=16",), {"rl.rollout_batch"}),
        (Machine(1, 16 * GB), ("world_model_eval.batch_size=16",), {"world_model_eval.batch_size"}),
        (
            Machine(1, 12 * GB),
            ("world_model.train.batch_size=64",),
            {"world_model.checkpointing", "world_model.train.accumulate"},
        ),
    ],
)
def test_advice_is_enough_and_no_more(
    machine: Machine, overrides: tuple[str, ...], helps: set[str], shallow: Networks
) -> None:
    experiment = changed(shallow.experiment, *overrides)
    assert make_plan(experiment, machine, shallow).too_large
    advice = advise(experiment, machine, shallow)
    assert not advice.plan.too_large and {*advice.changes} == helps, str(advice)

    def fits(changes: dict[str, Any]) -> bool:
        flags = {name.removeprefix("--"): value for name, value in changes.items() if name.startswith("--")}
        keys = [f"{name}={value}" for name, value in changes.items() if not name.startswith("--")]
        return not make_plan(changed(experiment, *keys), replace(machine, **flags), shallow).too_large

    assert fits(advice.changes)
    for name in advice.changes:
        if not (name == "--zero" and "--offload" in advice.changes):  # which asks for one
            assert not fits({other: value for other, value in advice.changes.items() if other != name}), name


def test_the_papers_policy_is_collocated_where_both_do_not_fit(libero: Networks) -> None:
    """The plan counts what waits on the host, and the time that moves take."""
    apart = changed(libero.experiment, "rl.collocated=false")
    machine = Machine(8, 76 * GB, zero=2)
    advice = advise(apart, machine, libero)
    assert "rl.collocated" in advice.changes and not advice.plan.too_large

    def phases(experiment: Experiment) -> dict[str, Part]:
        stage = next(stage for stage in make_plan(experiment, machine, libero).stages if stage.name == "rl")
        return {part.name: part for part in stage.parts}

    resident, moved = phases(apart), phases(libero.experiment)
    world = moved["imagine"].memory.weights - 2 * 7_541_237_184
    states = resident["train"].memory.optimizer
    base = 2 * 7_541_237_184
    assert 11.4 * GB < world < 11.6 * GB
    assert resident["train"].memory.weights - moved["train"].memory.weights == pytest.approx(world)
    assert resident["imagine"].memory.total - moved["imagine"].memory.total == pytest.approx(states + base)
    for name in ("imagine", "train"):
        more = moved[name].memory.host - resident[name].memory.host
        assert more == pytest.approx(8 * (world + base + states))
    assert moved["imagine"].seconds > resident["imagine"].seconds


def test_advice_may_not_be_enough(shallow: Networks) -> None:
    advice = advise(shallow.experiment, Machine(1, 4 * GB), shallow)
    assert advice.plan.too_large and "--offload" in advice.changes


def test_a_batch_smaller_than_its_parts_is_refused(shallow: Networks) -> None:
    with pytest.raises(
        UserError, match="world_model: expected a batch of at least processes x accumulate = 16 samples"
    ):
        make_plan(shallow.experiment, Machine(16, 80 * GB, zero=2), shallow)


def test_muon_is_not_sharded(shallow: Networks) -> None:
    muon = changed(shallow.experiment, "world_model.train.muon_lr=0.1")
    whole, sharded = (
        next(stage for stage in make_plan(muon, Machine(8, zero=zero), shallow).stages if stage.name == "world_model")
        for zero in (0, 2)
    )
    assert whole == sharded
    assert "--zero" not in advise(muon, Machine(8, 8 * GB), shallow).changes


def test_networks_that_do_not_fit_their_codec_are_refused(shallow: Networks) -> None:
    with pytest.raises(UserError, match="expected 48 latent channels as the codec has, found 12"):
        make_plan(changed(shallow.experiment, "world_model.dit.channels=12"), Machine(1))


def test_a_reward_head_counts_and_is_compared() -> None:
    experiment = load_config(Experiment, CONFIGS / "tabletop.yaml")
    plain, headed = (
        Networks(changed(experiment, f"world_model.reward_head={head}"), gpu=False) for head in ("null", "{}")
    )
    head = RewardHead(RewardHeadConfig(), headed.dit_config.width)
    found = headed.parameters("world_model")
    assert found.pop("reward_head") == sum(parameter.numel() for parameter in head.parameters())
    assert found == plain.parameters("world_model")
    steps = [of.step("world_model", 2, bf16=False, narrow=False) for of in (plain, headed)]
    assert steps[1].footprint.flops > steps[0].footprint.flops
    machine = Machine(0)
    compared = [
        next(stage for stage in make_plan(of.experiment, machine, of).stages if stage.name == "compare_reward")
        for of in (plain, headed)
    ]
    assert compared[1].parts[0].seconds == pytest.approx(2 * compared[0].parts[0].seconds)


def test_sizes_come_from_a_pretrained_file_where_there_is_one() -> None:
    experiment = load_config(Experiment, CONFIGS / "tabletop.yaml", ["world_model.dit.width=96"])
    assert Networks(experiment, gpu=True).dit_config.width == 256
    gone = changed(experiment, "world_model.pretrained=gone.safetensors")
    assert Networks(gone, gpu=True).dit_config.width == 96


def test_a_plan_leaves_no_trace() -> None:
    """The tables that networks share are real again."""
    config, window = DiTConfig(width=24, depth=1, heads=2, ffn_width=48, channels=4), layout(ContextConfig(), 8)
    arguments = torch.zeros(1, 4, 4, 8, 8), torch.zeros(1, 4), torch.zeros(1, 13, 3)
    before = ActionDiT(config, window)(*arguments)
    experiment = load_config(Experiment, CONFIGS / "tabletop.yaml", ["world_model.pretrained=null"])
    Networks(changed(experiment, f"world_model.dit={config.model_dump_json()}"), gpu=False).chunk(1, bf16=False)
    after = ActionDiT(config, window)(*arguments)
    assert before.device == after.device and after.isfinite().all()
