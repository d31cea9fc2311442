"""True success of the base, imagination and PACE policies on fixed initial states, paired across policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wovr.core.checkpoint import write_json
from wovr.core.types import SimulatorStart
from wovr.envs.chunked import ChunkedSimulator
from wovr.imagine.rollout import rollout
from wovr.metrics.success import Rate, paired_difference
from wovr.policy.base import Policy
from wovr.stages.experiment import Workplace
from wovr.stages.refine import last_policy
from wovr.stages.rl import IMAGINATION
from wovr.stages.sft import POLICY, load_policy

BATCH = 100


def run(place: Workplace) -> dict[str, Any]:
    """Write `eval/NAME.json` for every policy that exists and return rates and paired differences to the base."""
    policies: dict[str, Path] = {"base": place.run.path / POLICY}
    if (place.run.path / IMAGINATION).is_file():
        policies["imagination"] = place.run.path / IMAGINATION
    refined = last_policy(place)
    if refined is not None:
        policies["pace"] = refined
    summary: dict[str, Any] = {}
    outcome: dict[str, list[bool]] = {}
    for name, path in policies.items():
        found = evaluate(place, load_policy(path), name)
        write_json(place.run.folder("eval") / f"{name}.json", found)
        outcome[name] = [episode["success"] for episode in found["episodes"]]
        summary[name] = found["success"]
        if name != "base":
            paired = paired_difference(outcome["base"], outcome[name])
            summary[f"{name}_minus_base"] = {"difference": paired.difference, "ci95": list(paired.ci95)}
    return summary


def evaluate(place: Workplace, policy: Policy, name: str) -> dict[str, Any]:
    """One policy on every (task, initial state, repeat); the same draws for every policy of one seed."""
    config, simulator = place.experiment.eval, place.simulator()
    world = ChunkedSimulator(simulator, policy.chunk_length)
    keys = [
        (task.task_id, init, repeat)
        for repeat in range(config.repeats)
        for init in range(config.initial_states)
        for task in simulator.tasks
    ]
    episodes: list[dict[str, Any]] = []
    with place.log.progress(f"evaluate {name}", len(keys)) as bar:
        for first in range(0, len(keys), BATCH):
            part = keys[first : first + BATCH]
            batch = rollout(
                world,
                policy,
                [SimulatorStart(task, init) for task, init, _ in part],
                seed=place.experiment.seed,
                number=first,
                temperature=config.temperature,
                greedy=config.greedy,
                batch_size=BATCH,
            )
            for (task, init, repeat), success, steps in zip(part, batch.success_N, batch.steps_N, strict=True):
                episodes.append(
                    {"task_id": task, "init_id": init, "repeat": repeat, "success": bool(success), "steps": int(steps)}
                )
            bar.advance(len(part), success=sum(e["success"] for e in episodes) / len(episodes))
    place.run.add_rollouts(
        "evaluation",
        episodes=len(episodes),
        steps=sum(episode["steps"] for episode in episodes),
        stage="eval",
        key=f"evaluation/{name}",
    )
    tasks = {
        task.instruction: Rate.of([e["success"] for e in episodes if e["task_id"] == task.task_id]).to_dict()
        for task in simulator.tasks
    }
    overall = Rate.of([episode["success"] for episode in episodes]).to_dict()
    return {"policy": name, "episodes": episodes, "success": overall, "tasks": tasks}
