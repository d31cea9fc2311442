import numpy as np

from wovr.core.types import SimulatorStart
from wovr.envs.chunked import ChunkedSimulator, TrajectoryKey
from wovr.envs.continued import ContinuedSimulator, RecordedStart
from wovr.envs.tabletop import Tabletop, TabletopConfig

H = 8
KEYS = [TrajectoryKey(0, 0, i, world=i) for i in range(3)]


def test_a_trajectory_goes_on_as_it_was_recorded() -> None:
    """Frames, states and success from the middle of an episode on are those of the episode itself."""
    rng = np.random.default_rng(0)
    actions_TBA = rng.uniform(-1, 1, (4 * H, 3, 3)).astype(np.float32)
    starts = [SimulatorStart(i, 60 + i) for i in range(3)]
    simulator = Tabletop(TabletopConfig())
    seen = [simulator.reset(starts)] + [simulator.step(actions_BA) for actions_BA in actions_TBA]

    steps = [0, 5, 2 * H]  # nothing, the middle of a chunk, whole chunks
    world = ContinuedSimulator(ChunkedSimulator(Tabletop(TabletopConfig()), H, every_frame=True))
    begun = world.reset(
        [RecordedStart(start, actions_TBA[:t, i]) for i, (start, t) in enumerate(zip(starts, steps, strict=True))], KEYS
    )
    assert begun.frames_BTHWC.shape[:2] == (3, 1)
    chunk = world.step(np.stack([actions_TBA[t : t + H, i] for i, t in enumerate(steps)]))
    for i, t in enumerate(steps):
        assert np.array_equal(begun.frames_BTHWC[i, 0], seen[t].frames_BHWC[i])
        assert np.array_equal(begun.states_BTS[i, 0], seen[t].states_BS[i])
        for h in range(H):
            assert np.array_equal(chunk.frames_BTHWC[i, h], seen[t + 1 + h].frames_BHWC[i])
            assert np.array_equal(chunk.states_BTS[i, h], seen[t + 1 + h].states_BS[i])
    world.keep([2])
    assert len(world.step(actions_TBA[3 * H :, 2][None]).frames_BTHWC) == 1
