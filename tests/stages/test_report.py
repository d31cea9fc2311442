"""The report of a run folder made by hand, whole and with parts missing."""

import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.stages.reported import (
    SIDE,
    make_replay,
    report_everything,
    workplace,
    write_closed_loop,
    write_evaluation,
    write_hallucination,
    write_metrics,
)
from wovr.core.source import source
from wovr.stages import curves, report, report_headline
from wovr.stages.pictures import strip


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    report_everything(path)
    return path


class Page(HTMLParser):
    """Tags that were opened, addresses of anything, ids, and tags left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def words(path):
    """The text of a report without its tags, white space as single blanks."""
    text = re.sub(r"<(style|script).*?</\1>", "", (path / report.REPORT).read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def plots(path):
    """The words in its pictures."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", (path / report.REPORT).read_text())


def test_the_page_needs_nothing_else(full):
    text = (full / report.REPORT).read_text()
    found = Page(text)
    assert not found.open, "every tag is closed"
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert {address[1:] for address in found.addresses if address.startswith("#")} <= set(found.ids)
    assert not re.search(r"url\((?!#)|@import|<script src", text)
    assert "<b>red</b>" not in text and "&lt;b&gt;red&lt;/b&gt;" in text, "instructions are escaped"
    assert text.count("data:image/webp;base64,") == 5, "three sprites, one keyframe, one still for paper"
    assert "Not there yet" not in text
    assert "correlation over 3 policies, 95 %: 1.00 to 1.00" in text and "rl-1" in text
    assert "600" in text and "fitted" in text and "NaN" not in words(full)


def test_the_head_says_what_the_run_came_to(full):
    text = words(full)
    assert "True success 33.3 % → 100.0 %" in text
    assert "+66.7 points over the base policy, paired on the same 6 episodes: a gain (95 %: 1.0 to 99.0;" in text
    # Closed loop measured keyframes alone, so that replays speak: one false success of two failures, no false failure.
    failed = "success is imagined in 50.0 % (95 %: 9.5 to 90.5; 1 of 2) of those that fail in truth, and denied in 0.0"
    assert f"recorded actions are replayed in the world model after PACE, {failed}" in text


def test_what_the_last_policy_is_promised_stands_beside_replays(tmp_path):
    with workplace(tmp_path / "run") as place:
        write_hallucination(place.run.path)
        write_closed_loop(place.run.path, world="pace", start="first_frame")
        report.run(place)
    text = words(tmp_path / "run")
    acting = "Acting for itself in the world model after PACE, the last policy is promised success in 0.0 %"
    assert f"{acting} (95 %: 0.0 to 79.3; 0 of 1)" in text, "the best of three, which failed once of eight times"
    assert "replayed instead, these shares are 50.0 % (95 %: 9.5 to 90.5; 1 of 2) and 0.0 %" in text


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [([0.01, 0.2], "a gain"), ([-0.2, -0.01], "a loss"), ([-0.1, 0.2], "not distinguishable from no change")],
)
def test_the_verdict_says_no_more_than_its_interval(ci95, verdict):
    found = {name: {"rate": 0.5, "n": 9, "ci95": [0.2, 0.8]} for name in ("base", "pace")}
    gain = {"difference": sum(ci95) / 2, "ci95": ci95, "gained": 2, "lost": 1, "n": 9}
    summary = {"success": found, "paired": {"pace_minus_base": gain}}
    assert report_headline.headline(summary, "the true simulator", online=False)["verdict"] == verdict


def test_the_summary_holds_the_numbers(full):
    summary = json.loads((full / report.SUMMARY).read_text())
    assert summary["success"]["base"]["rate"] == pytest.approx(2 / 6)
    gain = summary["paired"]["imagination_minus_base"]
    assert (gain["gained"], gain["lost"], gain["n"]) == (3, 1, 6)
    assert summary["ledger"] == {"collect": {"episodes": 600, "steps": 24000}}
    assert summary["seconds"] == {"sft": 60.0, "rl": 30.5, "total": 90.5}
    assert summary["world_model"]["worlds"]["pace"]["fps"] == 7.0
    assert summary["hallucination"]["pace"]["collect"]["by_start"]["first_frame"]["counts"]["false_success"] == 1


def test_confusion_is_counted(full):
    text = (full / report.REPORT).read_text()
    cells = re.findall(r'<td class="(agree|clash)"[^>]*>(\d+)<', text)
    assert cells[:4] == [("agree", "1"), ("clash", "1"), ("clash", "0"), ("agree", "1")]
    assert len(cells) == 8, "both world models"


def test_the_world_models_videos_are_a_table(full):
    text = (full / report.REPORT).read_text()
    for cell in ("PSNR ↑", "LPIPS ↓", "after PACE", "21.23 [20.00, 22.50]", "0.500 [0.400, 0.600]"):
        assert f">{cell}<" in text, cell
    assert "an abacus" in text


def test_a_world_model_that_ignores_its_actions_is_a_warning(full):
    text = (full / report.REPORT).read_text()
    assert re.search(r"<li>base world model, episodes of collect: follows its actions; error 0\.\d", text)
    assert re.search(r'<li><b class="down">after PACE, episodes of collect: DOES NOT FOLLOW its actions;', text)
    assert text.count("growth of the error") == 2, "a plot for each world model"
    assert "dimension 1 (mean |a| 0.25)" in text and "dimension 1 negated" in text
    measured = json.loads((full / report.SUMMARY).read_text())["action_following"]["worlds"]
    assert [measured[world]["collect"]["follows"] for world in ("base", "pace")] == [True, False]


def test_reward_models_have_their_calibration_curves(full):
    text = (full / report.REPORT).read_text()
    assert "classifier, true frames" in text and "classifier, imagined frames" in text
    assert text.count("true successes, %") == 1, "one world model, one purpose"
    assert re.search(r'<td class="text">classifier</td><td class="text">imagined</td><td><b>50\.0', text)


def test_stages_follow_each_other_in_time(full):
    text = (full / report.REPORT).read_text()
    bars = re.findall(
        r'class="what">([^<]*)</span><span class="track"[^>]*><i style="left:([\d.]+)%;width:([\d.]+)', text
    )
    assert [(name, float(left), float(width)) for name, left, width in bars] == [
        ("sft", 0, pytest.approx(100 * 60 / 90.5)),
        ("rl", pytest.approx(100 * 60 / 90.5), pytest.approx(100 * 30.5 / 90.5)),
    ]
    assert "600 24 000 env steps" in words(full)


def test_provenance_names_code_and_hashes(full):
    text = (full / report.REPORT).read_text()
    for value in source().values():
        assert text.count(value) >= 2, "of the stages and of the page"
    bank = (full / "keyframes" / "bank.safetensors").read_bytes()
    assert f"<b>keyframes/bank.safetensors</b> <small>{len(bank) / 1e6:.1f} MB</small>" in text
    assert hashlib.sha256(bank).hexdigest() in text
    assert "No pretrained file" in text


def test_what_a_run_did_not_write_down_is_unknown(tmp_path):
    with workplace(tmp_path / "run") as place:
        place.run.mark_done("sft", 1.0, {})
        del place.run.stages()["sft"]["source"]  # an older version's
        report.run(place)
    text = words(tmp_path / "run")
    assert re.search(r"stages wovr commit torch Python sft [\d.]+ unknown unknown unknown this page", text)
    assert "Unknown: the run did not write it down" in text


def test_what_is_not_there_yet_names_its_command(tmp_path):
    with workplace(tmp_path / "run") as place:
        report.run(place)
    text = (tmp_path / "run" / report.REPORT).read_text()
    assert not Page(text).open
    for command in ("eval", "sft", "rl", "collect", "run", "eval --what hallucination"):
        assert f"<code>wovr {command} CONFIG</code>" in text
    assert json.loads((tmp_path / "run" / report.SUMMARY).read_text())["success"] == {}
    assert not (tmp_path / "run" / report.STRIP).exists()


def test_without_a_simulator_success_is_imagined_and_closed_loop_is_left_out(tmp_path):
    with workplace(tmp_path / "run", simulator={"kind": "recorded"}) as place:
        write_evaluation(place.run.path, "base", [1, 0], world="imagination")
        report.run(place)
    text = words(tmp_path / "run")
    assert "Imagined success 50.0" in text and "There is no simulator here" in text
    assert "this run has recordings and no simulator" in text
    assert "eval --what hallucination" not in text


def test_training_in_the_simulator_has_no_world_model_to_speak_of(tmp_path):
    with workplace(tmp_path / "run", rl={"simulator": True}) as place:
        write_evaluation(place.run.path, "base", [1, 0])
        write_evaluation(place.run.path, "imagination", [1, 1])
        write_metrics(place.run.path)
        report.run(place)
    text = words(tmp_path / "run")
    assert "after RL in the simulator" in text and "in imagination" not in text
    assert "True success" in plots(tmp_path / "run") and "Imagined success" not in text
    assert "Hallucination" not in text and "Keyframes" not in text


def test_strip_shows_truth_above_imagination(full):
    image = np.asarray(Image.open(full / report.STRIP))
    replay = make_replay(0)  # the one in which both succeed
    np.testing.assert_array_equal(image, strip(replay))
    last = image[:, -3 * SIDE :][1::3, 1::3]
    np.testing.assert_array_equal(last[:SIDE], replay.true_THWC[-1])
    np.testing.assert_array_equal(last[-SIDE:], replay.imagined_THWC[-1])


def test_success_that_fell_in_truth_is_seen():
    """Imagination rises, truth falls: what the alarm is for."""
    looks = [
        {"stage": "refine-2/rl/alarm", "step": step, "imagined_rise": 0.1 * step, "true_rise": -0.1 * step}
        for step in (0, 4)
    ]
    (plot,) = curves.curves(looks, online=False)
    assert "RL after PACE 2: how far success has risen" in plot
    (frame,) = re.findall(r'<g id="patch_2">\s*<path d="([^"]*)"', plot)
    truth = re.findall(r'<path d="(M [\d.]+ [\d.]+ \nL [\d.]+ [\d.]+ \n)" clip-path', plot)[-1]
    highest, lowest = (end([float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", frame)]) for end in (min, max))
    assert all(highest < float(y) < lowest for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", truth))


def test_trainings_under_one_name_are_told_from_resumed_ones():
    def line(step, loss=0.0):
        return {"stage": "world_model", "step": step, "loss": loss}

    resumed = [line(10), line(20, loss=1.0), line(30), line(20, loss=2.0), line(30)]
    refined = [line(10), line(20)]
    first, second = curves.phases([*resumed, *refined, {"stage": "sft", "step": 10}], "world_model")
    assert [one["step"] for one in first] == [10, 20, 30] and first[1]["loss"] == 2.0
    assert second == refined
