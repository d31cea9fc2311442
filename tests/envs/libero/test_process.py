"""How a worker process is lost and started again, with stand-ins for the worker's code."""

from pathlib import Path

import pytest

from wovr.envs.libero import process
from wovr.envs.libero.process import WorkerFailedError, WorkerLostError, WorkerProcess
from wovr.envs.libero.render import Look
from wovr.envs.libero.scene import Setup

ECHO = """
import sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.recv_bytes()
while True:
    name, *arguments = connection.recv()
    if name == "die":
        sys.exit(f"died of {arguments[0]}")
    if name == "sleep":
        time.sleep(60)
    connection.send(("failed", "KeyError", "x") if name == "fail" else ("done", arguments))
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "CODE", ECHO)
    look = Look(64, wrist=False, shadows=False, reflections=False)
    worker = WorkerProcess(0, Setup(Path("package"), Path("assets"), "egl", tmp_path, look), threads=1)
    yield worker
    worker.close()


def test_worker_answers(worker):
    for value in (1, 2):
        worker.ask("echo", value)
        assert worker.answer() == [value]
    worker.ask("fail")
    with pytest.raises(WorkerFailedError, match="KeyError: x"):
        worker.answer()
    worker.ask("echo", 3)
    assert worker.answer() == [3]


def test_dead_worker_is_lost_with_its_last_words_and_replaced(worker):
    worker.ask("echo", 1)
    worker.answer()
    worker.task_file = "task"
    worker.ask("die", "old age")
    with pytest.raises(WorkerLostError, match="died of old age"):
        worker.answer()
    assert worker.pid is None and not worker.task_file
    worker.ask("echo", 2)
    assert worker.answer() == [2]


def test_silent_worker_is_lost(worker, monkeypatch):
    monkeypatch.setattr(process, "REPLY_LIMIT_S", 0.2)
    worker.ask("sleep")
    with pytest.raises(WorkerLostError, match="no answer"):
        worker.answer()
    assert worker.pid is None


def test_closing_twice_is_harmless(worker):
    worker.ask("echo", 1)
    worker.close()
    worker.close()
    assert worker.pid is None
