"""Films of imagined rollouts and of replays: what they show, and that they and the log reach wandb."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.stages.prepared import experiment, prepare, ready, updates
from wovr.core.checkpoint import load_tensors
from wovr.core.log import read_records
from wovr.envs.chunked import Chunk, TrajectoryKey
from wovr.stages import pipeline, rl
from wovr.stages.film import Film, is_filmed
from wovr.stages.pictures import BAR, GAP, SUCCESS, WAITING, save_film


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


def test_a_film_shows_videos_side_by_side_until_the_longest_ends(tmp_path: Path) -> None:
    grey = (10 * np.arange(5, dtype=np.uint8))[:, None, None, None]
    long_THWC, short_THWC = np.broadcast_to(grey, (5, 8, 8, 3)), np.broadcast_to(200 + grey[:3], (3, 8, 8, 3))
    save_film(tmp_path / "a" / "film.gif", [(long_THWC, 5), (short_THWC, 1)])  # the second succeeds by its last action
    shown = frames_of(tmp_path / "a" / "film.gif")
    assert [frame.shape for frame in shown] == [(8 + BAR, 8 + GAP + 8, 3)] * 5
    assert [int(frame[0, 0, 0]) for frame in shown] == [0, 10, 20, 30, 40]
    assert [int(frame[0, -1, 0]) for frame in shown] == [200, 210, 220, 220, 220]
    assert all(tuple(frame[-1, 0]) == WAITING for frame in shown)
    assert [tuple(frame[-1, -1]) for frame in shown] == [WAITING] * 2 + [SUCCESS] * 3


def test_films_stay_small(tmp_path: Path) -> None:
    video_THWC = np.random.default_rng(0).integers(0, 255, (300, 256, 256, 3), dtype=np.uint8)
    save_film(tmp_path / "film.gif", [(video_THWC, 300)])
    shown = frames_of(tmp_path / "film.gif")
    assert len(shown) == 64 and shown[0].shape == (128 + BAR, 128, 3)


def test_about_ten_films_whatever_the_length() -> None:
    for total, filmed in ((1, 1), (4, 4), (10, 10), (40, 10), (300, 10)):
        assert sum(is_filmed(update, total) for update in range(total)) == filmed and is_filmed(0, total)


def test_large_frames_wait_for_their_film_as_small_as_it_shows_them() -> None:
    film = Film(group_size=2)
    frames_BTHWC = np.random.default_rng(0).integers(0, 255, (2, 8, 256, 256, 3), dtype=np.uint8)
    chunk = Chunk(frames_BTHWC, np.zeros((2, 8), np.float32), np.zeros((2, 8, 0)), np.zeros(2, np.bool_))
    film([TrajectoryKey(0, 0, trajectory, world=0) for trajectory in (1, 2)], chunk)
    assert [piece.shape for piece in film._frames[1]] == [(8, 128, 128, 3)] and list(film._frames) == [1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(path)
    return path


def test_filmed_rollouts_are_those_that_rl_learns_from(prepared, tmp_path, monkeypatch):
    seen = []
    update_policy = rl.update_policy
    monkeypatch.setattr(rl, "update_policy", lambda *a, **k: seen.append(a[1]) or update_policy(*a, **k))
    path = ready(prepared, tmp_path / "filmed", experiment())
    with pipeline.open_workplace(experiment(), path, plain=True) as place:
        pipeline.run_stage(place, "rl")
    films = sorted((path / "rl/films").iterdir())
    assert [film.name for film in films] == [f"{update:04}.gif" for update in range(5)]
    for film, batch in zip(films, seen, strict=True):
        shown = frames_of(film)
        firsts = [int(np.flatnonzero(batch.group_N == group)[0]) for group in range(4)]
        assert shown[0].shape[1] == 4 * 64 + 3 * GAP
        assert len(shown) <= 1 + batch.steps_N[firsts].max()  # a frame that equals the last may be one with it
        for panel, row in enumerate(firsts):
            start = batch.frames_NCHWC[row, 0].astype(int)
            left = panel * (64 + GAP)
            assert np.abs(shown[0][:64, left : left + 64] - start).mean() < 8, "but for the colours of a GIF"
            green = tuple(shown[-1][-1, left]) == SUCCESS
            assert green == bool(batch.success_N[row])
    monkeypatch.setattr(rl, "is_filmed", lambda update, updates: False)
    other = ready(prepared, tmp_path / "not", experiment())
    with pipeline.open_workplace(experiment(), other, plain=True) as place:
        pipeline.run_stage(place, "rl")
    assert updates(path) == updates(other) and not (other / "rl/films").exists()
    policies = [load_tensors(run / "rl/policy.safetensors")[0] for run in (path, other)]
    assert all(np.array_equal(policies[0][name], policies[1][name]) for name in policies[0]), "films change nothing"
    lines = [line for line in read_records(path / "metrics.jsonl") if line["stage"] == "video"]
    assert [(line["of"], line["file"]) for line in lines] == [("rl", f"rl/films/{film.name}") for film in films]


def test_replays_are_filmed_truth_beside_imagination(prepared, tmp_path):
    path = ready(prepared, tmp_path / "run", experiment())
    with pipeline.open_workplace(experiment(), path, plain=True) as place:
        pipeline.run_stage(place, "hallucination")
    examples, metadata = load_tensors(path / "hallucination/examples.safetensors")
    count = len(json.loads(metadata["replays"]))
    films = sorted((path / "hallucination/films").iterdir())
    assert count and [film.name for film in films] == [f"{number}.gif" for number in range(1, count + 1)]
    true_HWC = examples["true_THWC.0"][0].numpy().astype(int)
    first = frames_of(films[0])[0]
    assert first.shape[1] == 2 * 64 + GAP and np.abs(first[:64, :64] - true_HWC).mean() < 8
