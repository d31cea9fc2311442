import pytest

from wovr.core import progress
from wovr.core.progress import Work, clock, duration, speed


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (3900, "1 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_clock_and_speed() -> None:
    assert [clock(seconds) for seconds in (0.4, 250, 3850)] == ["0:00", "4:10", "1:04:10"]
    assert [speed(rate) for rate in (2.0, 1 / 14, 1 / 300, 0.0)] == ["2.0/s", "14 s each", "5 min each", ""]


def test_waiting_for_the_next_unit_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = Work("rl", 10, 2)
    assert work.left is None
    now[0] = 30.0
    assert work.left is None, "what was done before tells nothing of the rate"
    work.advance(2, {})
    assert (work.rate, work.left) == (pytest.approx(2 / 30), pytest.approx(90))
    now[0] = 50.0
    assert (work.rate, work.left) == (pytest.approx(2 / 30), pytest.approx(70))
    now[0] = 500.0
    assert work.left == 0
