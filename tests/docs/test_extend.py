"""docs/extend.md does what it says: its code is run, at toy size, through the package's own rollouts and training."""

import json
from dataclasses import replace

import numpy as np
import torch

from tests.docs.blocks import ROOT, Block, run_line, save, section
from tests.stages.prepared import experiment
from wovr.core.types import SimulatorStart
from wovr.envs.tabletop import Tabletop, TabletopConfig
from wovr.episodes.store import EpisodeStore
from wovr.kir.bank import KeyframeBank
from wovr.metrics.success import first_success
from wovr.reward.base import Seen
from wovr.stages.demonstrations import demonstrate
from wovr.stages.true_rollouts import training_starts

PAGE = ROOT / "docs/extend.md"


def commands(found: list[Block]) -> list[str]:
    return [line for block in found if block.language == "bash" for line in block.code.splitlines()]


def test_the_policy_acts_and_learns(reader):
    found = section(PAGE, "A policy")
    save(found, reader)
    code, full = (reader / "use_policy.py").read_text(), 'FIT, UPDATES = Path("runs/demo"), 400, 15'
    assert full in code
    (reader / "use_policy.py").write_text(code.replace(full, full.replace("400, 15", "20, 2")))
    (line,) = commands(found)
    left = run_line(line)
    fresh = torch.manual_seed(0) and left["GridPolicy"]()
    policy, logs, batch = left["policy"], left["logs"], left["batch"]
    assert not torch.equal(policy.trunk[0].weight, fresh.trunk[0].weight)
    assert len(batch) == 128 and batch.success_N.any() and not batch.success_N.all(), "some of it is imagined success"
    assert logs["rows"] > 0 and logs["grad_norm"] > 0, "GRPO had something to learn from"
    assert logs["log_prob_gap"] < 1e-4, "what acts and what is trained agree about probabilities"


def test_the_simulator_makes_a_run(reader, capsys):
    found = section(PAGE, "A simulator")
    save(found, reader)
    lines = commands(found)
    for line in lines[:-1]:
        run_line(line.replace("300", "40"))
    store = EpisodeStore(reader / "runs/reach/episodes")
    purposes = [store.info(name).purpose for name in store.names]
    assert {purpose: purposes.count(purpose) for purpose in set(purposes)} == {"demonstrations": 20, "collect": 40}
    ledger = [json.loads(line) for line in (reader / "runs/reach/ledger.jsonl").read_text().splitlines()]
    assert {line["purpose"]: line["episodes"] for line in ledger} == {"demonstrations": 20, "collect": 40}
    assert (reader / "runs/reach/rl/policy.safetensors").is_file()

    shown = [store.open(name) for name in store.names[:20]]
    assert np.mean([episode.success for episode in shown]) > 0.5, "the hand knows where to go"
    for episode in shown[:4]:  # the state says what the frame and the success show
        hand_T2, goal_T2 = episode.states_TS[1:, :2], episode.states_TS[1:, 2:]
        np.testing.assert_array_equal(episode.success_T, np.linalg.norm(hand_T2 - goal_T2, axis=1) < 4)
        x, y = episode.states_TS[-1, :2].round().astype(int)
        assert (episode.frames_THWC[-1][y, x] == 250).all()

    capsys.readouterr()
    run_line(lines[-1])
    assert capsys.readouterr().out.count("of 100") == 2
    refine = "collect('rl', 'refine-1', 100, first=300)"
    assert refine in PAGE.read_text()
    exec(f"from rollouts import collect; {refine.replace('100', '16')}", {})
    run_line("wovr refine reach.yaml --run runs/reach")
    assert (reader / "runs/reach/refine/round_1/rl/policy.safetensors").is_file()


def test_the_simulator_keeps_to_the_protocol(reader):
    """Initial states are numbers, and what is not active stands still."""
    save(section(PAGE, "A simulator"), reader)
    from reach import Reach

    starts = [SimulatorStart(0, 3), SimulatorStart(1, 3), SimulatorStart(0, 4)]
    simulator, again = Reach(), Reach()
    first = simulator.reset(starts)
    np.testing.assert_array_equal(first.frames_BHWC, again.reset(starts).frames_BHWC)
    np.testing.assert_array_equal(first.frames_BHWC[0], first.frames_BHWC[1])
    moved = simulator.step(np.ones((3, 3), np.float32), np.array([True, False, True]))
    assert (moved.states_BS != first.states_BS).any(axis=1).tolist() == [True, False, True]
    assert (moved.frames_BHWC[1] == first.frames_BHWC[1]).all()


def test_the_reward_model_judges_imagination(reader, capsys):
    found = section(PAGE, "A reward model")
    save(found, reader)
    (line,) = commands(found)
    left = run_line(line)
    said = capsys.readouterr().out
    assert "of 16 true episodes" in said and "as the colours tell it" in said
    judge, world, info = left["judge"], left["world"], left["info"]
    assert left["env"].world.reward is world.reward is judge and (world.threshold, world.hold) == (0.5, 2)
    frames_BTHWC = torch.from_numpy(info["frames"])
    instructions = [start.instruction for start in _starts(left)]
    asked = judge.judge(Seen(frames_BTHWC, None), instructions)
    np.testing.assert_allclose(info["success_probability"], asked.numpy(), atol=1e-6)


def _starts(left):
    """Those that the environment drew: an instruction is in the observation."""
    from wovr.imagine.env import decode_instruction

    bank: KeyframeBank = left["bank"]
    return [replace(bank[0], instruction=decode_instruction(one)) for one in left["observation"]["instruction"]]


def test_the_reward_model_knows_the_truth(reader):
    """Of a demonstrator who never errs by chance, and of one whose aim is far off."""
    save(section(PAGE, "A reward model"), reader)
    from colours import ColourJudge

    judge, simulator = ColourJudge(), Tabletop(TabletopConfig())
    starts = training_starts(simulator, range(16), 10_000)
    outcomes = []
    for skill, offset in ((1, "[0.0, 0.0]"), (1, "[9.0, 0.0]")):
        for episode in demonstrate(simulator, starts, experiment(f"sft.skill={skill}", f"sft.offset={offset}")):
            frames_1THWC = torch.from_numpy(episode.frames_THWC[1:])[None]
            probability_1T = judge.judge(Seen(frames_1THWC, None), [episode.instruction])
            says = bool(first_success(probability_1T, judge.threshold, judge.hold) < len(episode))
            outcomes.append((says, episode.success))
    true = [success for _, success in outcomes]
    assert 8 <= sum(true) <= 24, "both happen"
    assert sum(says == success for says, success in outcomes) >= 30, outcomes


def test_the_imagined_environment(reader):
    (block,) = section(PAGE, "The imagined environment, for other RL libraries")
    save([block], reader)
    left = run_line("python imagined.py")
    assert left["chunks"].shape == left["info"]["success_probability"].shape + (3,) == (16, 8, 3)
    assert left["env"].num_envs == 16
