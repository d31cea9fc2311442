"""The report of a run folder made by hand, whole and with parts missing."""

import json
import re
from contextlib import contextmanager
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.imagine.worlds import make_start
from wovr.core.checkpoint import write_json
from wovr.core.log import RunLog
from wovr.core.run import RunFolder
from wovr.core.train import TrainConfig
from wovr.kir.bank import KeyframeBank
from wovr.metrics.action_following import measure_action_following, variant_names
from wovr.metrics.reward_quality import measure_reward
from wovr.metrics.success import Rate
from wovr.stages import action_following, closed_loop, compare_reward, curves, hallucination, report, world_model_eval
from wovr.stages.evaluate import TRUE
from wovr.stages.experiment import CodecStageConfig, Experiment, Workplace
from wovr.stages.pictures import animation, strip
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


def write_evaluation(run, name, successes):
    episodes = [
        {"task_id": i % 2, "init_id": i // 2, "repeat": 0, "success": bool(success), "steps": 20}
        for i, success in enumerate(successes)
    ]
    tasks = {
        instruction: Rate.of(successes[task::2]).to_dict() for task, instruction in enumerate([INSTRUCTION, "lift it"])
    }
    content = {
        "policy": name,
        "world": TRUE,
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


def write_closed_loop(run):
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
    write_json(
        run / closed_loop.SUMMARY, {"policies": list(found["by_policy"]), "worlds": {"base": {"keyframe": found}}}
    )


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
    probability = [np.array([0.2, 0.9, 0.7], np.float32)]
    found = measure_reward(probability, [np.array([False, True, False])], 0.6, 1).to_dict()
    write_json(run / compare_reward.SUMMARY, {"base": {"collect": {"classifier": {"true": found, "imagined": found}}}})


@contextmanager
def workplace(path):
    experiment = Experiment(codec=CodecStageConfig(pretrained=None, train=TrainConfig(steps=1)))
    with RunFolder.open(path, experiment.model_dump(mode="json")) as run:
        yield Workplace(experiment, run, None, None)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run folder with everything in it, and its report."""
    with workplace(tmp_path_factory.mktemp("report") / "run") as place:
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
        return run.path


class Page(HTMLParser):
    """Tags that were opened, addresses of anything, and tags left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(full):
    text = (full / report.REPORT).read_text()
    found = Page(text)
    assert not found.open, "every tag is closed"
    assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert "<b>red</b>" not in text and "&lt;b&gt;red&lt;/b&gt;" in text, "instructions are escaped"
    assert text.count("data:image/webp;base64,") == 3
    assert text.count("data:image/png;base64,") == 1, "one keyframe, no first frame"
    assert "Not there yet" not in text
    assert "1.00 (1.00 to 1.00)" in text and "rl-1" in text
    assert "600" in text and "fitted" in text and "NaN" not in text


def test_the_summary_holds_the_numbers(full):
    summary = json.loads((full / report.SUMMARY).read_text())
    assert summary["success"]["pace"] == {"rate": 1.0, "n": 6, "ci95": list(Rate(6, 6).ci95)}
    assert summary["success"]["base"]["rate"] == pytest.approx(2 / 6)
    gain = summary["paired"]["imagination_minus_base"]
    assert (gain["gained"], gain["lost"], gain["n"]) == (3, 1, 6)
    assert summary["ledger"] == {"collect": {"episodes": 600, "steps": 24000}}
    assert summary["seconds"] == {"sft": 60.0, "rl": 30.5, "total": 90.5}
    assert summary["world_model"]["worlds"]["pace"]["fps"] == 7.0
    assert summary["hallucination"]["pace"]["collect"]["by_start"]["first_frame"]["counts"]["false_success"] == 1


def test_the_world_models_videos_are_a_table(full):
    text = (full / report.REPORT).read_text()
    for cell in ("PSNR ↑", "LPIPS ↓", "after PACE", "21.23 [20.00, 22.50]", "0.500 [0.400, 0.600]"):
        assert f">{cell}<" in text, cell
    assert "an abacus" in text


def test_a_world_model_that_ignores_its_actions_is_a_warning(full):
    text = (full / report.REPORT).read_text()
    assert re.search(r"<p>base world model, episodes of collect: follows its actions; error 0\.\d", text)
    assert re.search(r'<p><b class="down">after PACE, episodes of collect: DOES NOT FOLLOW its actions;', text)
    assert text.count("growth of the error") == 2, "a plot for each world model"
    assert "dimension 1 (mean |a| 0.25)" in text and "dimension 1 negated" in text
    measured = json.loads((full / report.SUMMARY).read_text())["action_following"]["worlds"]
    assert [measured[world]["collect"]["follows"] for world in ("base", "pace")] == [True, False]


def test_reward_models_have_their_calibration_curves(full):
    text = (full / report.REPORT).read_text()
    assert "classifier, true frames" in text and "classifier, imagined frames" in text
    assert text.count("true successes, %") == 1, "one world model, one purpose"
    assert re.search(r'<td class="text">classifier</td><td class="text">imagined</td><td><b>50\.0', text)


def test_what_is_not_there_yet_names_its_command(tmp_path):
    with workplace(tmp_path / "run") as place:
        report.run(place)
    text = (tmp_path / "run" / report.REPORT).read_text()
    assert not Page(text).open
    for command in ("eval", "sft", "rl", "collect"):
        assert f"<code>wovr {command} CONFIG</code>" in text
    assert json.loads((tmp_path / "run" / report.SUMMARY).read_text())["success"] == {}
    assert not (tmp_path / "run" / report.STRIP).exists()


def test_strip_shows_truth_above_imagination(full):
    image = np.asarray(Image.open(full / report.STRIP))
    replay = make_replay(0)  # the one in which both succeed
    np.testing.assert_array_equal(image, strip(replay))
    last = image[:, -3 * SIDE :][1::3, 1::3]
    np.testing.assert_array_equal(last[:SIDE], replay.true_THWC[-1])
    np.testing.assert_array_equal(last[-SIDE:], replay.imagined_THWC[-1])


def test_animation_keeps_every_frame_and_marks_success(tmp_path):
    replay = make_replay(0)
    (tmp_path / "a.webp").write_bytes(animation(replay))
    with Image.open(tmp_path / "a.webp") as film:
        assert film.n_frames == STEPS + 1
        for t in (0, 9, 10, STEPS):
            film.seek(t)
            frame = np.asarray(film.convert("RGB")).astype(int)
            np.testing.assert_array_equal(frame[:SIDE, :SIDE], replay.true_THWC[t])
            np.testing.assert_array_equal(frame[:SIDE, SIDE + 2 : 2 * SIDE + 2], replay.imagined_THWC[t])
            true, imagined = frame[-1, 0], frame[-1, SIDE + 2]
            # Success completes with action 8 in truth and 9 in imagination: frames 9 and 10.
            assert (true[1] > true[0]) == (t >= 9)
            assert (imagined[1] > imagined[0]) == (t >= 10)


def test_trainings_under_one_name_are_told_from_resumed_ones():
    def line(step, loss=0.0):
        return {"stage": "world_model", "step": step, "loss": loss}

    resumed = [line(10), line(20, loss=1.0), line(30), line(20, loss=2.0), line(30)]
    refined = [line(10), line(20)]
    first, second = curves.phases([*resumed, *refined, {"stage": "sft", "step": 10}], "world_model")
    assert [one["step"] for one in first] == [10, 20, 30] and first[1]["loss"] == 2.0
    assert second == refined
