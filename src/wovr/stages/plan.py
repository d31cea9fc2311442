"""What an experiment asks of a machine, and what to change where it asks too much. Nothing of it is run.

Memory is counted on the stages' own networks and losses (`wovr.core.footprint`); what is assumed of a machine stands in
`wovr.stages.plan_machine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from wovr.core.config import merge, validate
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.stages.experiment import Experiment
from wovr.stages.plan_machine import Machine
from wovr.stages.plan_networks import Networks
from wovr.stages.plan_parts import Part, StagePlan
from wovr.stages.plan_stages import Stages

KEYS = {
    "sft": ("sft.train",),
    "codec": ("codec.train",),
    "reward": ("reward.train",),
    "world_model": ("world_model.train", "world_model.own_memory.train"),
    "decoder": ("decoder.train",),
    "rl": ("rl.update",),
    "refine": ("world_model.train", "decoder.train", "reward.train", "rl.update"),
}
"""Sections of the config that say how a stage trains."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages on one machine."""

    machine: Machine
    stages: list[StagePlan]

    def part_needs(self, part: Part) -> float:
        """Bytes of a GPU; of the host where there is no GPU."""
        return part.memory.total + (0 if self.machine.gpus else part.memory.host)

    def is_too_large(self, part: Part) -> bool:
        """Whether it does not leave to CUDA and its allocator what they take."""
        return self.part_needs(part) > self.machine.usable

    def needs(self, stage: StagePlan) -> float:
        """The same at the stage's peak."""
        return max(map(self.part_needs, stage.parts))

    @property
    def tightest(self) -> StagePlan:
        """The stage that takes most memory."""
        return max(self.stages, key=self.needs)

    @property
    def too_large(self) -> list[StagePlan]:
        """Stages with such a part."""
        return [stage for stage in self.stages if any(map(self.is_too_large, stage.parts))]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; bytes, seconds and FLOPs."""
        stages = {
            stage.name: {
                "parameters": stage.parameters,
                "disk": stage.disk,
                "parts": [{**asdict(part), "total": part.memory.total} for part in stage.parts],
            }
            for stage in self.stages
        }
        return {
            "machine": asdict(self.machine),
            "usable": self.machine.usable,
            "fits": not self.too_large,
            "assumptions": list(self.machine.assumptions),
            "stages": stages,
        }


Changes = dict[str, Any]
"""Values by flag of the command line, as `--zero`, or by dotted key of the config."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What was changed, and the plan then; it may still not fit."""

    changes: Changes
    plan: Plan

    def __str__(self) -> str:
        return " ".join(
            (name if value is True else f"{name} {value}") if name.startswith("--") else f"{name}={value}"
            for name, value in self.changes.items()
        )


def make_plan(experiment: Experiment, machine: Machine, networks: Networks | None = None) -> Plan:
    """The plan. `networks` may be those of an experiment with the same networks, which saves time.

    Raises UserError where a batch has fewer samples than there are micro-batches.
    """
    networks = Networks(experiment, machine.gpus > 0) if networks is None else networks.of(experiment)
    return Plan(machine, list(Stages(experiment, machine, networks).all()))


def advise(experiment: Experiment, machine: Machine, networks: Networks) -> Advice:
    """The first changes with which everything fits, and none of them needless; all where all are not enough.

    In order: what ZeRO splits; what costs time, as activations computed twice or collocation; offloading; and last of
    all the average, which changes the result.
    """

    def planned(options: Iterable[Changes]) -> Plan:
        return make_plan(*_changed(experiment, machine, _together(options)), networks)

    first = planned([])
    if not first.too_large:
        return Advice({}, first)
    split, offloaded, levers, average = _options(experiment, machine, first)
    for ways, more in (
        (split, []),
        (split, levers),
        (offloaded, []),
        (offloaded, levers),
        (split + offloaded, levers + average),
    ):
        strongest = [lever[-1] for lever in more]
        for way in ways:
            if not planned([way, *strongest]).too_large:
                return _pruned(way, more, planned)
    everything = [*(split + offloaded)[-1:], *(lever[-1] for lever in levers + average)]
    return Advice(_together(everything), planned(everything))


def _pruned(way: Changes, levers: list[list[Changes]], planned: Callable[[Iterable[Changes]], Plan]) -> Advice:
    """What is needed of levers that are enough, each as mild as it may be. The last are given up first."""
    chosen = [lever[-1] for lever in levers]
    for i in reversed(range(len(chosen))):
        for milder in ({}, *levers[i]):
            trial = [*chosen[:i], milder, *chosen[i + 1 :]]
            if not planned([way, *trial]).too_large:
                chosen = trial
                break
    return Advice(_together([way, *chosen]), planned([way, *chosen]))


def _options(
    experiment: Experiment, machine: Machine, plan: Plan
) -> tuple[list[Changes], list[Changes], list[list[Changes]], list[list[Changes]]]:
    """What may help where these stages are too large: ZeRO stages; ways to offload; levers, each from mild to strong;
    and the average."""
    parts = [(stage.name, part.name) for stage in plan.too_large for part in stage.parts if plan.is_too_large(part)]
    trained = dict.fromkeys(stage for stage, part in parts if part == "train")
    world = {"world_model", "refine"} & {stage for stage, part in parts if part in ("train", "validate")}
    split: list[Changes] = [{}]
    offloaded: list[Changes] = []
    config = experiment.model_dump()
    sections = list(dict.fromkeys(section for stage in trained for section in KEYS[stage]))
    muon = any((_at(config, section) or {}).get("muon_lr") for section in sections)  # which ZeRO cannot shard
    if machine.gpus and (trained or world) and not muon:
        split += [{"--zero": stage} for stage in range(machine.zero + 1, 4)]
        stages = dict.fromkeys((max(1, machine.zero), max(2, machine.zero)))
        offloaded = [{"--zero": stage, "--offload": True} for stage in stages]
    levers: list[list[Changes]] = []
    kinds = ["none", "selective", "full"]
    if world & {*trained}:
        weaker = kinds.index(experiment.world_model.checkpointing)
        levers.append([{"world_model.checkpointing": kind} for kind in kinds[weaker + 1 :]])
    policy = experiment.policy
    if {"sft", "rl", "refine"} & {*trained} and isinstance(policy, OpenVLAOFTConfig):
        levers.append([{"policy.checkpointing": True}] * (not policy.checkpointing))
    if {"rl", "refine"} & {stage for stage, _ in parts} and not experiment.rl.simulator:
        levers.append([{"rl.collocated": True}] * (not experiment.rl.collocated))
    for section in sections:
        settings = _at(config, section)
        if settings is not None:
            most = settings.get("batch_size", settings["accumulate"] * 32) // machine.processes
            more = (settings["accumulate"] * 2**n for n in range(1, 16))
            levers.append([{f"{section}.accumulate": n} for n in more if n <= most])
    if ("world_model_eval", "imagine") in parts:
        levers.append([{"world_model_eval.batch_size": n} for n in _halved(experiment.world_model_eval.batch_size)])
    if any(part in ("imagine", "validate", "replay") for _, part in parts):
        levers.append([{"rl.rollout_batch": n} for n in _halved(experiment.rl.rollout_batch)])
    averaged = world and experiment.world_model.train.ema_decay > 0
    average: list[list[Changes]] = [[{"world_model.train.ema_decay": 0.0}]] if averaged else []
    return split, offloaded, [lever for lever in levers if lever], average


def _halved(value: int) -> list[int]:
    return [value // 2**n for n in range(1, 16) if value >= 2**n]


def _together(options: Iterable[Changes]) -> Changes:
    return {name: value for option in options for name, value in option.items()}


def _at(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = (config or {}).get(part)  # type: ignore[assignment]
    return config


def _changed(experiment: Experiment, machine: Machine, changes: Changes) -> tuple[Experiment, Machine]:
    raw = experiment.model_dump()
    for name, value in changes.items():
        if name.startswith("--"):
            machine = replace(machine, **{name.removeprefix("--"): value})
            continue
        nested = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        raw = merge(raw, nested)
    return validate(Experiment, raw, "plan"), machine
