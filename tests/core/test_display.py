"""The live picture, as a terminal of so many columns and lines would show it."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from wovr.core import progress
from wovr.core.display import Display
from wovr.core.log import RunLog, read_records
from wovr.core.progress import Expected, Stage, Success, Work

CLEAR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])  # the one `time` of all modules
    return now


def console(width: int = 80, height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, highlight=False)


def picture(display: Display, width: int = 80, *, ascii_only: bool = False) -> list[str]:
    out = console(width)
    options = out.options.copy()
    options.encoding = "ascii" if ascii_only else "utf-8"
    return [line.rstrip() for line in CLEAR.sub("", "".join(s.text for s in out.render(display, options))).splitlines()]


def midway(display: Display, clock: list[float]) -> Work:
    """Two stages done, the third at 15 of 40."""
    names = ("sft", "collect", "rl", "eval")
    display.plan([Stage(name) for name in names], None)
    display.put(Stage("sft", "done", seconds=52))
    display.put(Stage("collect", "done", note="done 3 min ago, skipped"))
    display.put(Stage("rl", "running", began=clock[0]))
    work = Work("rl", 40, 5)
    display._work.append(work)
    clock[0] += 20
    work.advance(10, {"valid_steps": 29.8125})
    clock[0] += 5
    collected, imagined = Success("true", "base, collect"), Success("imagined", "rl")
    collected.add(600, 0.37, (0.332, 0.409))
    for step, rate in enumerate((0.0, 0.25, 0.5, 1.0), start=1):
        imagined.add(step, rate, None)
    display.success(collected)
    display.success(imagined)
    return work


def test_a_picture_tells_stages_work_and_success(clock: list[float]) -> None:
    display = Display(console(), "seed1")
    midway(display, clock)
    assert picture(display) == [
        "seed1  0:25",
        "✓ sft      52 s",
        "✓ collect  done 3 min ago, skipped",
        "▸ rl       0:25",
        "  rl  ━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  15/40  0.5/s  0:45 left",  # 25 at 0.5/s, less the 5 s since
        "      valid_steps 29.81",
        "· eval",
        "",
        "  success",
        "  true      base, collect  37.0 % [33.2, 40.9]",
        "  imagined  rl             100.0 %  ▁▃▅█",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int, clock: list[float]) -> None:
    display = Display(console(width), "a run with a name that is longer than many terminals are wide, and then some")
    midway(display, clock).advance(1, {f"a_measure_{i}": i / 7 for i in range(9)})
    lines = picture(display, width)
    assert len(lines) == 11 and max(map(len, lines)) <= width
    assert any("16/40" in line for line in lines)


def test_a_terminal_without_unicode_gets_none(clock: list[float]) -> None:
    display = Display(console(), "seed1")
    midway(display, clock)
    lines = picture(display, ascii_only=True)
    assert "\n".join(lines).isascii() and "+ sft      52 s" in lines


def test_what_does_not_fit_is_folded(clock: list[float]) -> None:
    display = Display(console(), "run")
    names = [f"stage_{number}" for number in range(16)]
    display.plan([Stage(name) for name in names], None)
    for name in names[:7]:
        display.put(Stage(name, "done", seconds=60))
    display.put(Stage("stage_7", "running", began=clock[0]))
    for number in range(12):
        success = Success("true", f"policy {number}")
        success.add(1, 0.5, None)
        display.success(success)
    options = console().options
    whole = [line.plain for line in display._lines(options, None)]
    assert len(whole) == 1 + 16 + 2 + 12
    assert [line.plain for line in display._lines(options, 31)] == whole
    folded = [line.plain for line in display._lines(options, 26)]
    assert folded[1] == "✓ 7 stages  7 min" and len(folded) == 25 and folded[-12:] == whole[-12:]
    low = [line.plain for line in display._lines(options, 12)]
    assert low[1:4] == ["✓ 7 stages  7 min", "▸ stage_7   0:00", "· 8 to come: " + ", ".join(names[8:])]
    assert len(low) == 12 and low[-6:] == whole[-6:]


def test_time_left_overall_is_that_of_another_run_at_todays_speed(clock: list[float]) -> None:
    expected = Expected({"a": 10.0, "b": 100.0, "c": 30.0}, "as in runs/seed0")
    stages = {name: Stage(name) for name in ("a", "b", "c")}
    assert expected.left(stages) == 140
    stages["a"] = Stage("a", "done", began=clock[0] - 20, seconds=20.0)  # twice as slow
    assert expected.left(stages) == 2 * 130
    stages["b"] = Stage("b", "running", began=clock[0] - 50)
    assert expected.left(stages) == 150 + 60
    stages["b"].began -= 1000
    assert expected.left(stages) == 60
    stages["d"] = Stage("d")
    assert expected.left(stages) is None, "nothing is said where a stage is not known"
    stages["d"].state = "left out"
    display = Display(console(), "run")
    display.plan(list(stages.values()), expected)
    assert picture(display)[0] == "run  0:00  about 1 min left, as in runs/seed0"


def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLog:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return RunLog(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_leaves_the_last_picture_and_a_sane_terminal(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    log = drawn(tmp_path, monkeypatch)

    def broken() -> None:
        with log.stages(["sft", "rl"]), log.stage("sft"), log.progress("fit", 10) as bar:
            bar.advance(3)
            log.info("a word in between")
            raise error

    with pytest.raises(error):
        broken()
    said = capsys.readouterr().err
    assert said.rindex("\x1b[?25h") > said.rfind("\x1b[?25l"), "the cursor is to be seen"
    last = CLEAR.sub("", said[said.rindex("✗ sft") :])
    assert "stopped after 0 s" in last and "3/10" in last and "· rl" in last
    assert "a word in between\n" in said and last.endswith("\n")
    print("one line")
    assert capsys.readouterr() == ("one line\n", ""), "nobody draws any more"


def test_success_is_known_again_where_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    log = RunLog(tmp_path, plain=True)
    log.success("true", "base, collect", 0.25, step=600, ci95=(0.2, 0.3))
    for step in (1, 2, 3):
        log.success("imagined", "rl", step / 4, step=step, curve=True)
    assert capsys.readouterr().err == "true success of base, collect: 25.0 % [20.0, 30.0]\n"
    again = drawn(tmp_path, monkeypatch)
    again.success("imagined", "rl", 0.6, step=2, curve=True)  # as after a checkpoint at 1
    with again.stages([]):
        pass
    last = CLEAR.sub("", capsys.readouterr().err)
    assert "base, collect  25.0 % [20.0, 30.0]" in last and "rl             60.0 %  ▃▅" in last
    lines = [line for line in read_records(tmp_path / "metrics.jsonl") if line["stage"] == "success"]
    assert [line["step"] for line in lines] == [600, 1, 2, 3, 2]


def test_a_pipe_and_a_dumb_terminal_get_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("TERM", "dumb")
        log = RunLog(tmp_path)
        with log.stages(["sft", "rl"]):
            log.passed("sft", "done 3 min ago, skipped", done=True)
            with log.stage("rl"):
                pass
        assert capsys.readouterr().err == "sft: done 3 min ago, skipped\nrl: done in 0 s\n"
