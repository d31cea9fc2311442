"""A run that begins as another: what both experiments agree on is computed once.

An experiment that differs from another in its RL alone has the same base policy, rollouts, world model and reward. A
fork takes over the stages before the first setting that differs, and shares their files on disk.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wovr.core.checkpoint import link_file, read_json, write_json, write_text
from wovr.core.log import append_record, read_records
from wovr.core.run import EPISODES, MANIFEST, RunFolder
from wovr.episodes.store import EpisodeStore
from wovr.stages.data import COLLECT, DEMONSTRATIONS
from wovr.stages.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Part:
    """What a stage adds to a run folder, and the sections of the experiment that decide it beside those before."""

    sections: tuple[str, ...]
    paths: tuple[str, ...]
    logs: tuple[str, ...] = ()
    """Stages under which its lines stand in ledger and metrics."""


PARTS = {
    "sft": Part(("seed", "simulator", "policy", "sft"), ("sft",), (DEMONSTRATIONS, "sft")),
    "collect": Part(("collect",), (), (COLLECT,)),
    "codec": Part(("codec",), ("codec",), ("codec",)),
    "reward": Part(("reward", "near_success"), ("reward",), ("reward",)),
    "world_model": Part(("world_model",), ("world_model/dit.safetensors",), ("world_model", "own_memory")),
    "decoder": Part(("decoder",), ("world_model/codec.safetensors",), ("decoder",)),
    "keyframes": Part(("keyframes",), ("keyframes",)),
}
"""Stages that can be shared, in their order. Episodes, latents and reconstructions are addressed by what they are."""
CACHES = ("latents", "reconstructed")


def shared_stages(source: Path, experiment: Experiment) -> list[str]:
    """Stages that the run at `source` has done as `experiment` would do them, up to the first that it would not."""
    run = RunFolder.read(source)
    return [name for name in agreeing(run.config, experiment.model_dump(mode="json")) if run.stage_done(name)]


def agreeing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Stages up to the first that two experiments, as JSON, would do differently."""
    agree = itertools.takewhile(
        lambda part: all(theirs.get(key) == ours[key] for key in part[1].sections), PARTS.items()
    )
    return [name for name, _ in agree]


def fork(source: Path, target: Path, experiment: Experiment) -> list[str]:
    """Begin the run of `experiment` at `target` with what it shares with the run at `source`; returns these stages.

    A run that is there already is left as it is. Files are linked where the disk allows it: none is ever changed in
    place.
    """
    shared = shared_stages(source, experiment)
    if (target / MANIFEST).is_file():
        return shared
    part = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / ".lock").touch()
    write_text(part / "config.yaml", yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    manifest = read_json(source / MANIFEST)
    write_json(part / MANIFEST, manifest | {"stages": {name: manifest["stages"][name] for name in shared}})
    logs = [log for name in shared for log in PARTS[name].logs]
    for name in ("ledger.jsonl", "metrics.jsonl"):
        for line in read_records(source / name):
            if line["stage"] in logs:
                append_record(part / name, line)
    store = EpisodeStore(source / EPISODES)
    shards = {name.split("/")[0]: store.info(name).purpose for name in store.names}
    paths = [f"{EPISODES}/{shard}.hdf5" for shard, purpose in shards.items() if purpose in logs]
    for path in [*paths, *CACHES, *(path for name in shared for path in PARTS[name].paths)]:
        _link(source / path, part / path)
    part.replace(target)
    return shared


def _link(source: Path, target: Path) -> None:
    """A file or a folder of files; nothing where there is none."""
    files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
    for file in files:
        link_file(target / file.relative_to(source), file)
