"""What is seen and felt in a simulator is in the episodes of scripted hands and of policies, asked for or not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.imagine.worlds import A, FakePolicy, FeelingPolicy, H, ScriptedSimulator
from wovr.core.types import Episode, SimulatorStart
from wovr.envs.chunked import ChunkedSimulator
from wovr.envs.tabletop import Tabletop, TabletopConfig
from wovr.episodes.store import EpisodeStore
from wovr.imagine.rollout import rollout
from wovr.stages.scripted import record
from wovr.stages.true_rollouts import to_episodes

STARTS = [SimulatorStart(1, 0), SimulatorStart(0, 1)]


class Still:
    """A hand that does not move."""

    def action(self, view: object) -> np.ndarray:
        return np.zeros(A, dtype=np.float32)


def assert_of_each_step(episode: Episode) -> None:
    numbers = list(range(len(episode) + 1))
    assert episode.frames_THWC[:, 0, 0, 0].tolist() == numbers
    assert episode.wrist_THWC is not None and episode.wrist_THWC[:, 0, 0, 0].tolist() == [n + 1 for n in numbers]
    assert episode.proprio_TP is not None and episode.proprio_TP.tolist() == [[n, n / 2] for n in numbers]


def test_scripted_hands(tmp_path) -> None:
    simulator = ScriptedSimulator()
    recorded = record(simulator, simulator.reset(STARTS), [Still(), Still()], 12, after_success=1)
    facts = {"instruction": "at nine", "suite": "scripted", "task_id": 1, "init_id": 0, "policy": "demonstrator"}
    episodes = [Episode(**arrays, **facts, seed=0, purpose="demonstrations") for arrays in recorded]
    assert [len(episode) for episode in episodes] == [10, 12]
    store = EpisodeStore(tmp_path)
    for name, episode in zip(store.append(episodes), episodes, strict=True):
        assert_of_each_step(episode)
        assert_of_each_step(store.read(name))


@pytest.mark.parametrize("policy", [FakePolicy(), FeelingPolicy(2, 2)])
def test_policies(policy: FakePolicy) -> None:
    simulator = ScriptedSimulator()
    world = ChunkedSimulator(simulator, H, every_frame=True)
    batch = rollout(world, policy, STARTS, seed=1, record=True)
    episodes = to_episodes(batch, STARTS, simulator, "collect", "base", 1)
    assert [len(episode) for episode in episodes] == [16, 24]
    for episode in episodes:
        assert_of_each_step(episode)


def test_where_nothing_is_felt_nothing_is_recorded() -> None:
    simulator = Tabletop(TabletopConfig(horizon=8))
    (arrays,) = record(simulator, simulator.reset([SimulatorStart(0, 0)]), [Still()], 3)
    assert arrays is not None and not {"wrist_THWC", "proprio_TP"} & set(arrays)
