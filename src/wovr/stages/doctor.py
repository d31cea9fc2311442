"""What this machine has and lacks for an experiment, and what mends it. Nothing is changed or downloaded.

Importing this loads neither torch nor LIBERO: where one of them does not load, `wovr doctor` must still say so. What
may crash or hang is tried in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wovr.core.errors import UserError

if TYPE_CHECKING:
    from wovr.stages.experiment import Experiment

GB = 1e9
PYTHON = (3, 11)
PROBE_LIMIT_S = 120.0
"""For one probe: importing torch from a cold, slow disk takes most of a minute."""
TORCH = """
import json, torch
there = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
gpus = [torch.cuda.get_device_properties(index) for index in there]
unusable = ""
try:
    [torch.ones(1, device=f"cuda:{index}").sum().item() for index in there]
except Exception as error:
    unusable = " ".join(str(error).split())[:200]
found = {"version": torch.__version__, "cuda": torch.version.cuda, "unusable": unusable}
print(json.dumps(found | {"gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
"""
TORCHVISION = """
import importlib.util
if importlib.util.find_spec("torchvision"):
    import torchvision
    print(torchvision.__version__)
"""
DEEPSPEED = "import deepspeed; print(deepspeed.__version__)"
LEROBOT = "import av, pyarrow.parquet; print(f'av {av.__version__}, pyarrow {pyarrow.__version__}')"
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str = ""
    problem: str = ""
    """What is wrong; empty where nothing is."""
    mend: str = ""
    """The command that mends it."""
    needed: bool = True
    """Whether the experiment cannot run while there is a problem."""

    @property
    def stops(self) -> bool:
        """Whether it keeps the experiment from running."""
        return bool(self.problem) and self.needed


@dataclass(frozen=True, slots=True)
class Probed:
    """What a process said before it ended, or why it failed."""

    said: str = ""
    error: str = ""


def probe(command: Sequence[str], limit_s: float = PROBE_LIMIT_S) -> Probed:
    """Run a command to its end. Its last line on stdout, or what went wrong in one line."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Probed(error=f"no answer in {limit_s:.0f} s")
    except OSError as error:
        return Probed(error=str(error))
    last = [_last_line(stream) for stream in (done.stdout, done.stderr)]
    if done.returncode:
        return Probed(error=next(filter(None, reversed(last)), f"status {done.returncode}")[:300])
    return Probed(last[0])


def probe_python(code: str, limit_s: float = PROBE_LIMIT_S) -> Probed:
    """The same of a program in this environment."""
    return probe([sys.executable, "-P", "-c", code], limit_s)


def survey(load: Callable[[], Experiment], run: Path) -> list[Check]:
    """All checks for the experiment that `load` reads and its run folder; UserError as of `load`.

    Where torch does not load, or what the experiment is made of, there are those checks alone that say so.
    """
    with ThreadPoolExecutor() as pool:
        facts, torchvision, deepspeed, lerobot = pool.map(probe_python, (TORCH, TORCHVISION, DEEPSPEED, LEROBOT))
    checks = [
        *_safely("python", lambda: [check_python()]),
        *_safely("wovr", lambda: [check_wovr()]),
        *_safely("packages", check_packages),
        *_safely("torch", lambda: check_torch(facts, _driver())),
        *_safely("torchvision", lambda: [check_torchvision(torchvision)]),
    ]
    if facts.error:
        return checks
    try:
        experiment = load()
    except UserError:
        raise
    except Exception as error:
        problem = f"cannot be read before the above is mended: {_words(error)}"
        return [*checks, Check("config", problem=problem)]
    return [
        *checks,
        *_of_experiment(experiment, run, _gpus(facts)),
        check_deepspeed(deepspeed),
        check_compilers(experiment.world_model.compile),
        check_lerobot(lerobot),
        *_safely("wandb", lambda: [check_wandb()], needed=False),
    ]


def _of_experiment(experiment: Experiment, run: Path, gpus: list[tuple[str, int]]) -> list[Check]:
    from wovr.stages.doctor_libero import check_libero
    from wovr.stages.doctor_resources import check_resources, check_run_folder

    libero = experiment.simulator.kind == "libero"
    return [
        *_safely("memory and disk", lambda: check_resources(experiment, run, gpus), needed=False),
        *_safely("run folder", lambda: [check_run_folder(run)]),
        *_safely("pretrained", lambda: check_files(experiment)),
        *_safely("LIBERO", lambda: check_libero(experiment.simulator), needed=libero),
    ]


def _safely(name: str, check: Callable[[], list[Check]], *, needed: bool = True) -> list[Check]:
    try:
        return check()
    except Exception as error:
        return [Check(name, problem=f"could not be found out: {_words(error)}", needed=needed)]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The interpreter."""
    found, expected = ".".join(map(str, version)), ".".join(map(str, PYTHON))
    problem = "" if version >= PYTHON else f"expected {expected} or newer"
    return Check("python", f"{found}, {sys.executable}", problem, f"make PYTHON=python{expected}" if problem else "")


def check_wovr() -> Check:
    """This package, whose version every run folder records."""
    try:
        version = importlib.metadata.version("wovr")
    except importlib.metadata.PackageNotFoundError:
        return Check("wovr", problem="expected it to be installed, found its files alone", mend="pip install -e .")
    return Check("wovr", f"{version}, {Path(__file__).parents[1]}")


def check_packages(
    requirements: Iterable[str] | None = None, version_of: Callable[[str], str | None] | None = None
) -> list[Check]:
    """Those that wovr always needs against their ranges: one check for each that does not fit, and one for the rest."""
    from packaging.requirements import Requirement

    version_of = version_of or installed_version
    asked = [Requirement(text) for text in requirements or importlib.metadata.requires("wovr") or ()]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    misfits = []
    for one in asked:
        version, expected = version_of(one.name), f"{one.name}{one.specifier}"
        if version is None or not one.specifier.contains(version, prereleases=True):
            problem = f"expected {expected}, found {version or 'none'}"
            misfits.append(Check(one.name, problem=problem, mend=f"pip install '{expected}'"))
    fit = len(asked) - len(misfits)
    return [Check("packages", f"{fit} of {len(asked)} that wovr always needs, in versions that fit"), *misfits]


def check_torch(facts: Probed, driver: Probed) -> list[Check]:
    """torch, and what it computes on; `driver` is the GPUs' driver's answer, empty where there is none."""
    if facts.error:
        mend = "pip install --force-reinstall -c constraints.txt torch"
        return [Check("torch", problem=f"does not load: {facts.error}", mend=mend)]
    found, gpus = json.loads(facts.said), _gpus(facts)
    build = f"for CUDA {found['cuda']}" if found["cuda"] else "without CUDA"
    torch = Check("torch", f"{found['version']}, built {build}")
    if found["unusable"]:
        return [torch, Check("GPU", _listed(gpus), f"does not compute: {found['unusable']}", _cuda_build())]
    if gpus:
        return [torch, Check("GPU", _listed(gpus))]
    if driver.error:
        return [torch, Check("GPU", problem=f"its driver does not answer: {driver.error}", needed=False)]
    if not driver.said:
        return [torch, Check("GPU", "none: computes on the CPU")]
    mend = _cuda_build() if not found["cuda"] else f"install a driver that serves CUDA {found['cuda']}: nvidia-smi"
    return [torch, Check("GPU", driver.said, "the driver shows it, torch does not see it", mend, needed=False)]


def check_torchvision(loaded: Probed) -> Check:
    """Its absence is fine; one that does not load takes others along."""
    if not loaded.error:
        return Check("torchvision", loaded.said or "none, which is fine")
    return Check(
        "torchvision",
        problem=f"does not load ({loaded.error}), and so neither do torchmetrics, diffusers and transformers",
        mend="pip uninstall torchvision, or install the build that fits torch's",
    )


def check_files(experiment: Experiment) -> list[Check]:
    """Pretrained files and the metrics' weights, each by its header."""
    from wovr.stages.pipeline import FILE_CHECKS

    codec, world, metrics = experiment.codec, experiment.world_model, experiment.world_model_eval
    asked = {
        "policy": experiment.policy.pretrained,
        "codec": codec.pretrained,
        "world model": world.pretrained,
        "metrics": ", ".join(metrics.metrics),
    }
    keys = {name: f"{name.replace(' ', '_')}.pretrained" for name in asked} | {"metrics": "world_model_eval.weights"}
    checks = []
    for name, check in FILE_CHECKS.items():
        found = f"{asked[name]}" if asked[name] else "none that needs weights" if name == "metrics" else "from scratch"
        try:
            check(experiment)
            checks.append(Check(name, found))
        except UserError as error:
            mend = f"put it there as data/README.md says, or name another: {keys[name]}=PATH"
            checks.append(Check(name, problem=str(error), mend=mend))
    if "flolpips" in metrics.metrics and installed_version("torchvision") is None:
        checks.append(Check("flolpips", problem="expected torchvision, found none", mend="pip install 'wovr[metrics]'"))
    return checks


def check_deepspeed(loaded: Probed) -> Check:
    """Sharded training; without it there is training on one GPU, or on several that each hold the model whole."""
    if not loaded.error:
        return Check("DeepSpeed", f"{loaded.said}; nothing of it is compiled", needed=False)
    problem = f"only --zero needs it: {loaded.error}"
    return Check("DeepSpeed", problem=problem, mend="pip install -c constraints.txt deepspeed", needed=False)


def check_compilers(compiles: bool, which: Callable[[str], str | None] = shutil.which) -> Check:
    """For `world_model.compile`; DeepSpeed's own kernels, which ask for all three, are not used (`wovr.core.zero`)."""
    tools = ("g++", "ninja", "nvcc")
    there = [tool for tool in tools if which(tool)]
    found = ", ".join(there) or "none"
    if "g++" in there:
        why = "world_model.compile asks for g++" if compiles else "nothing here needs one"
        return Check("compilers", f"{found}; {why}", needed=compiles)
    why = "world_model.compile" if compiles else "only world_model.compile"
    return Check("compilers", found, f"{why} asks for g++", "apt install g++", needed=compiles)


def check_lerobot(loaded: Probed) -> Check:
    """What `wovr convert` reads and writes LeRobot datasets with."""
    if not loaded.error:
        return Check("LeRobot", loaded.said, needed=False)
    problem = f"only LeRobot datasets need it: {loaded.error}"
    return Check("LeRobot", problem=problem, mend="pip install 'wovr[lerobot]'", needed=False)


def check_wandb() -> Check:
    """Its key."""
    from wovr.core.log import has_wandb_key

    if has_wandb_key():
        return Check("wandb", "logged in", needed=False)
    return Check("wandb", problem="no key: --wandb logs offline", mend="wandb login", needed=False)


def from_error(name: str, error: UserError, mend: str = "", *, needed: bool = True) -> Check:
    """The check whose problem an error tells, with the error's own command where it has one."""
    problem, _, install = str(error).partition("; install it: ")
    return Check(name, problem=problem, mend=install or mend, needed=needed)


def _driver() -> Probed:
    return probe(NVIDIA_SMI, 30) if shutil.which(NVIDIA_SMI[0]) else Probed()


def _gpus(facts: Probed) -> list[tuple[str, int]]:
    """Names and bytes."""
    return [] if facts.error else [(name, size) for name, size in json.loads(facts.said)["gpus"]]


def _listed(gpus: list[tuple[str, int]]) -> str:
    kinds = dict.fromkeys(gpus)
    return ", ".join(f"{gpus.count(kind)} x {kind[0]}, {kind[1] / GB:.0f} GB" for kind in kinds)


def _cuda_build() -> str:
    return "install torch's CUDA build, as torch's own install page says"


def installed_version(package: str) -> str | None:
    """Of a package in this environment, which is not imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _last_line(stream: bytes) -> str:
    lines = stream.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _words(error: Any) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
