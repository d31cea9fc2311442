"""What `wovr doctor` says of machines that lack something."""

import json
import os
from collections import namedtuple
from pathlib import Path

import pytest

from wovr.core.errors import UserError
from wovr.core.types import Task
from wovr.envs.libero import LiberoConfig, install
from wovr.envs.recorded import RecordedConfig
from wovr.envs.tabletop import TabletopConfig
from wovr.stages import doctor, doctor_libero, doctor_resources
from wovr.stages.doctor import Check, Probed
from wovr.stages.plan import Plan
from wovr.stages.plan_machine import GB, Machine
from wovr.stages.plan_parts import Memory, Part, StagePlan

NMS = "RuntimeError: operator torchvision::nms does not exist"


def fake_package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def torch_facts(cuda: str | None = None, unusable: str = "", gpus: tuple = ()) -> Probed:
    return Probed(json.dumps({"version": "2.13.0", "cuda": cuda, "unusable": unusable, "gpus": gpus}))


def test_what_hangs_or_crashes_is_said() -> None:
    assert doctor.probe_python("print('some words')\nprint(6 * 7)") == Probed("42")
    assert doctor.probe_python("import os; os.abort()").error == "status -6"
    assert doctor.probe_python("import time; time.sleep(60)", limit_s=0.2).error == "no answer in 0 s"
    assert "No such file" in doctor.probe(["/no/such/program"]).error
    assert doctor._safely("thing", lambda: [][0]) == [
        Check("thing", problem="could not be found out: IndexError: list index out of range")
    ]


def test_torchvision_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.check_torchvision(doctor.probe_python(doctor.TORCHVISION))
    assert check.stops and NMS in check.problem and check.mend.startswith("pip uninstall torchvision")
    (tmp_path / "torchvision/__init__.py").write_text("__version__ = '0.28.0'")
    assert doctor.check_torchvision(doctor.probe_python(doctor.TORCHVISION)) == Check("torchvision", "0.28.0")
    assert not doctor.check_torchvision(Probed()).problem, "none is fine"


def test_without_torch_there_is_no_experiment_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "torch", "raise OSError('libtorch_cpu.so: file too short')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checks = {check.name: check for check in doctor.survey(lambda: pytest.fail("read"), tmp_path)}
    assert "libtorch_cpu.so" in checks["torch"].problem and checks["torch"].stops
    assert not checks["python"].problem and not checks["packages"].problem


def test_an_experiment_whose_modules_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load():
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr(doctor, "probe_python", lambda code: torch_facts())
    last = doctor.survey(load, tmp_path)[-1]
    assert last.name == "config" and last.stops and last.problem.endswith("torchvision::nms does not exist")


def test_gpus() -> None:
    two = (["H200", 150 * GB], ["H200", 150 * GB])
    assert doctor.check_torch(torch_facts("13.0", gpus=two), Probed())[1] == Check("GPU", "2 x H200, 150 GB")
    assert not doctor.check_torch(torch_facts(), Probed())[1].problem
    for cuda, mend in ((None, "CUDA build"), ("13.0", "driver that serves CUDA 13.0")):
        unseen = doctor.check_torch(torch_facts(cuda), Probed("NVIDIA H200"))[1]
        assert unseen.found == "NVIDIA H200" and unseen.problem and not unseen.stops and mend in unseen.mend
    silent = doctor.check_torch(torch_facts("13.0"), Probed(error="couldn't communicate with the NVIDIA driver"))[1]
    assert "couldn't communicate" in silent.problem and not silent.stops
    assert doctor.check_torch(torch_facts("13.0", "no kernel image", two), Probed())[1].stops


def test_packages_and_python() -> None:
    asked = ["numpy>=2,<3", "torch>=2.9,<2.14", "h5py>=3.12", 'pytest>=8; extra == "dev"']
    there = {"numpy": "1.26.0", "torch": "2.13.0+cpu"}
    first, numpy, h5py = doctor.check_packages(asked, there.get)
    assert first.found.startswith("1 of 3") and not first.problem
    assert numpy.stops and "found 1.26.0" in numpy.problem and numpy.mend == "pip install 'numpy<3,>=2'"
    assert h5py.stops and "found none" in h5py.problem
    assert doctor.check_python((3, 10, 4)).stops and not doctor.check_python((3, 12, 0)).problem


def test_optional_things() -> None:
    missing = Probed(error="ModuleNotFoundError: No module named 'av'")
    for check in (doctor.check_deepspeed(missing), doctor.check_lerobot(missing)):
        assert "'av'" in check.problem and check.mend.startswith("pip install") and not check.stops
    assert not doctor.check_deepspeed(Probed("0.19.8")).problem and not doctor.check_lerobot(Probed("av 18")).problem
    none = {"which": lambda tool: None}
    assert doctor.check_compilers(True, **none).stops, "world_model.compile asks for one"
    assert doctor.check_compilers(False, **none).problem and not doctor.check_compilers(False, **none).stops
    assert not doctor.check_compilers(True, which=lambda tool: f"/usr/bin/{tool}").problem


def test_missing_files(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WOVR_METRIC_WEIGHTS", raising=False)
    assert not any(check.problem for check in doctor.check_files(toy()))
    codec, world = tmp_path / "codec.safetensors", tmp_path / "dit.safetensors"
    asked = (f"codec.pretrained={codec}", f"world_model.pretrained={world}", "world_model_eval.metrics=[flolpips]")
    monkeypatch.setattr(doctor, "installed_version", lambda package: None)
    checks = {check.name: check for check in doctor.check_files(toy(*asked))}
    assert [name for name, check in checks.items() if not check.stops] == ["policy"], "the embedded one needs none"
    assert str(codec) in checks["codec"].problem and "codec.pretrained=PATH" in checks["codec"].mend
    assert str(world) in checks["world model"].problem
    assert "WOVR_METRIC_WEIGHTS" in checks["metrics"].problem
    assert "pip install" in checks["flolpips"].mend


def a_plan(machine: Machine, memory: float = 0.0, host: float = 0.0, disk: float = 0.0) -> Plan:
    part = Part("train", Memory(weights=memory * GB, host=host * GB), 0, 0)
    return Plan(machine, [StagePlan("rl", {}, [part], disk * GB), StagePlan("eval", {}, [part], 0)])


def test_memory() -> None:
    host = Machine(0, 16 * GB)
    (fits,) = doctor_resources.check_memory(a_plan(host, 8, 7), 16 * GB, 1 * GB)
    (large,) = doctor_resources.check_memory(a_plan(host, 8, 9), 16 * GB, 16 * GB)
    assert not fits.problem and "takes up to 15.0 GB" in fits.found
    assert large.stops and large.mend.startswith("wovr plan CONFIG --gpus 0")
    ram, vram = doctor_resources.check_memory(a_plan(Machine(1, 24 * GB), 60, 9), 16 * GB, 16 * GB)
    assert not ram.problem and vram.problem and not vram.stops and "--gpu-memory 24" in vram.mend


def test_disk_and_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor_resources.shutil, "disk_usage", lambda place: usage(2 * GB))
    run = tmp_path / "runs" / "new"
    plan = a_plan(Machine(0, GB), disk=2.001)
    short = doctor_resources.check_disk(plan, run)
    assert short.stops and "2.0 GB free" in short.found and str(tmp_path) in short.problem and "--run" in short.mend
    run.mkdir(parents=True)
    with (run / "episodes.hdf5").open("wb") as file:
        file.truncate(3_000_000)
    assert not doctor_resources.check_disk(plan, run).problem, "what is there is not written again"
    assert doctor_resources.check_run_folder(run) == Check("run folder", f"{run}, can be made")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert doctor_resources.check_run_folder(run / "deeper").stops


@pytest.fixture
def no_libero(monkeypatch: pytest.MonkeyPatch) -> None:
    def find():
        raise UserError("LIBERO: expected the package hf-libero, found none; install it: pip")

    monkeypatch.setattr(install, "find_package", find)
    monkeypatch.setattr(doctor_libero, "installed_version", lambda package: None)
    monkeypatch.delenv(install.ASSETS_VARIABLE, raising=False)


def test_missing_libero_stops_those_who_simulate_with_it(no_libero: None) -> None:
    package, gl, assets = doctor_libero.check_libero(LiberoConfig())
    assert package.stops and "--no-deps hf-libero" in package.mend and "found none" in package.problem
    assert gl.stops and "mujoco" in gl.problem and assets.stops
    for other in (TabletopConfig(), RecordedConfig()):
        checks = doctor_libero.check_libero(other)
        assert all(check.problem for check in checks) and not any(check.stops for check in checks)


def test_missing_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(install.ASSETS_VARIABLE, raising=False)
    monkeypatch.setattr(install, "find_package", lambda: tmp_path)
    monkeypatch.setattr(install, "working_gl", lambda asked: "egl")
    monkeypatch.setattr(doctor_libero, "installed_version", lambda package: "1")
    package, gl, assets = doctor_libero.check_libero(LiberoConfig())
    assert not package.problem and not gl.problem
    assert assets.stops and "to the home folder" in assets.found and "WOVR_LIBERO_ASSETS=PATH" in assets.mend
    assert not any(tmp_path.iterdir()), "nothing is downloaded"
    *_, assets = doctor_libero.check_libero(LiberoConfig(assets=tmp_path))
    assert assets.stops and "key 'assets'" in assets.problem and not assets.found


def test_each_distinct_scene_is_started_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [Task(number, f"task_{number}", "") for number in range(3)]
    for task, thing, place in zip(tasks, ("bowl_1 - bowl", "bowl_1  - bowl", "book_1 - book"), "abc", strict=True):
        text = f"(define (problem Table)\n (:regions ({place}))\n (:fixtures\n main - table\n )\n (:objects {thing}))"
        (tmp_path / task.name).write_text(text)
    started: list[int] = []

    class Simulator:
        def __init__(self, config: LiberoConfig) -> None:
            assert config.workers == 1

        def reset(self, starts: list) -> None:
            started.extend(start.task_id for start in starts)
            if started[-1] == 2:
                raise UserError("task task_2: FileNotFoundError: book.xml")

        def close(self) -> None:
            started.append(-1)

    monkeypatch.setattr(doctor_libero, "load_tasks", lambda suite, names: tasks)
    monkeypatch.setattr(doctor_libero, "task_file", lambda suite, name: tmp_path / name)
    monkeypatch.setattr(doctor_libero, "Libero", Simulator)
    check = doctor_libero.check_scenes(LiberoConfig())
    assert started == [0, 2, -1]
    assert check.stops and check.found.startswith("1 of 2 distinct ones of 3 tasks") and "book.xml" in check.problem
