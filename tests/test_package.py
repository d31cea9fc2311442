"""What pip installs: all files are in it, and it works where there is no repository."""

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from tests.stages.conftest import TOY

ROOT = Path(__file__).parents[1]
LINKED = {"cli/wovr_cli/configs": "configs", "cli/wovr_cli/data/pretrained": "data/pretrained"}
"""Links of a checkout, and where they lead."""
OTHER = ("codec", "simulator.horizon", "world_model.dit", "world_model.own_memory", "rl.updates", "decoder.train")
TOY_DEMO = (
    *(one for one in TOY if not one.startswith(OTHER)),
    "simulator.horizon=16",
    "codec.train=null",  # the pretrained one that ships
    "world_model.dit={width: 32, depth: 1, heads: 2, ffn_width: 64, channels: 12}",
    "world_model.own_memory=null",
    "decoder.train=null",
    "rl.updates=1",
    "closed_loop={first_frames: 2, keyframes: 2, policies: 2}",
)


def run(*command: str, **options) -> str:
    found = subprocess.run(command, capture_output=True, text=True, **options)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


def tracked(*folders: str) -> list[str]:
    return run("git", "ls-files", "-z", *folders, cwd=ROOT).rstrip("\0").split("\0")


def build(out: Path, *what: str) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(out), str(ROOT))
    (wheel,) = out.glob("*.whl")
    return wheel


def digests(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as file:
        assert file.testzip() is None
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """By way of the source distribution, which lies beside it."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel installed into a folder of its own."""
    target = tmp_path_factory.mktemp("installed") / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    run(sys.executable, *pip, "--target", str(target), str(wheel))
    return target


def wovr(site: Path, cwd: Path, *arguments: str, start: Sequence[str] = ("-m", "wovr_cli")) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return run(sys.executable, *start, *arguments, cwd=cwd, env=environment)


def test_the_wheel_holds_every_file_and_nothing_else(wheel: Path) -> None:
    found = digests(wheel)
    sources = {name: name.split("/", 1)[1] for name in tracked("src/wovr", "cli/wovr_cli") if name not in LINKED}
    for link, folder in LINKED.items():
        assert (ROOT / link).is_symlink() and (ROOT / link).resolve() == ROOT / folder
        sources |= {name: link.split("/", 1)[1] + name.removeprefix(folder) for name in tracked(folder)}
    for source, name in sources.items():
        assert found.get(name) == hashlib.sha256((ROOT / source).read_bytes()).hexdigest(), source
    assert {"wovr/py.typed", "wovr_cli/configs/tabletop.yaml", "wovr_cli/data/pretrained/dit.safetensors"} <= {*found}
    (information,) = {name.split("/")[0] for name in found} - {"wovr", "wovr_cli"}
    assert information.endswith(".dist-info") and f"{information}/licenses/LICENSE" in found


def test_the_source_distribution_holds_the_tests_and_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert digests(build(tmp_path, "--wheel")) == digests(wheel)
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
        assert not [member.name for member in file if member.issym()]
        file.extractall(tmp_path / "unpacked")
    wanted = tracked("src", "configs", "data", "tests", "benchmarks", "docs", "LICENSE", "README.md", "Makefile")
    assert {*wanted} <= names
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    where = "from wovr_cli.arguments import packaged; print(packaged('configs/tabletop.yaml'))"
    in_place = os.environ | {"PYTHONPATH": f"{unpacked}/src:{unpacked}/cli"}
    assert run(sys.executable, "-c", where, env=in_place) == f"{unpacked}/configs/tabletop.yaml\n"


def test_its_metadata_is_valid(wheel: Path, site: Path, tmp_path: Path) -> None:
    (name,) = [name for name in digests(wheel) if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as file:
        metadata = Metadata.from_email(file.read(name), validate=True)
    assert metadata.name == "wovr" and metadata.license_expression == "Apache-2.0"
    assert metadata.description and metadata.description_content_type == "text/markdown"
    assert wovr(site, tmp_path, "--version") == f"wovr {metadata.version}\n"


def test_it_works_where_there_is_no_repository(site: Path, tmp_path: Path) -> None:
    where = "import wovr, wovr_cli; print(wovr.__file__, wovr_cli.__file__)"
    assert all(path.startswith(f"{site}/") for path in wovr(site, tmp_path, "-c", where, start=()).split())
    assert "train-wm" in wovr(site, tmp_path, "--help", start=(str(site / "bin" / "wovr"),))
    said = wovr(site, tmp_path, "demo", *TOY_DEMO)
    assert "Success in the true simulator" in said
    assert (tmp_path / "runs/demo/report/report.html").is_file() and [*tmp_path.iterdir()] == [tmp_path / "runs"]
    config = (tmp_path / "runs/demo/config.yaml").read_text()
    assert str(site / "wovr_cli/data/pretrained/codec.safetensors") in config and str(ROOT) not in config
