"""Where hf-libero, its assets and a GL library are, and how to import it without its side effects.

hf-libero asks a question on stdin at its first import and writes to the home folder, unless a config file exists;
robosuite opens a log file at a fixed path and prints about its macros; MuJoCo chooses its GL library at import.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from wovr.core.errors import UserError

INSTALL = "pip install 'wovr[libero-runtime]' && pip install --no-deps hf-libero==0.1.4"
"""As `make test` does: the extra `libero` brings a torchvision along, which may be one that does not load."""
FOLDERS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
ASSETS_VARIABLE = "WOVR_LIBERO_ASSETS"
HUB_REPOSITORY = "lerobot/libero-assets"
PROBE_LIMIT_S = 120
PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().any()
"""


@cache
def find_package() -> Path:
    """hf-libero's inner folder, with task files and initial states; UserError with what installs it."""
    spec = importlib.util.find_spec("libero")
    for place in (spec and spec.submodule_search_locations) or ():
        if (Path(place) / "libero" / "benchmark" / "libero_suite_task_map.py").is_file():
            return (Path(place) / "libero").resolve()
    raise UserError(f"LIBERO: expected the package hf-libero, found none; install it: {INSTALL}")


def find_assets(config: Path | None = None, *, download: bool = True) -> Path:
    """The folder of meshes and textures: `config`, else the variable's, else where hf-libero keeps them, else the hub.

    Only the last writes: to hf-libero's cache. UserError for a folder that is named and incomplete, or if all fails.
    """
    named = {"key 'assets'": config, ASSETS_VARIABLE: os.environ.get(ASSETS_VARIABLE)}
    for origin, path in named.items():
        if path:
            lacking = _lacking(Path(path))
            if lacking:
                raise UserError(f"{origin}: expected LIBERO's assets in {path}, found no folder {lacking[0]!r} there")
            return Path(path).resolve()
    kept = Path.home() / ".cache" / "libero" / "assets"
    for path in (find_package() / "assets", kept):
        if not _lacking(path):
            return path
    where = f"name their folder by {ASSETS_VARIABLE} or the key 'assets'"
    if not download:
        raise UserError(f"LIBERO's assets: found none; {where}, or let hf-libero's download put them in {kept}")
    try:
        from huggingface_hub import snapshot_download

        # hf-libero's own function passes an argument that huggingface_hub no longer takes.
        snapshot_download(HUB_REPOSITORY, repo_type="dataset", local_dir=kept)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"LIBERO's assets: {where}; the download of {HUB_REPOSITORY} failed: {said}") from None
    if _lacking(kept):
        raise UserError(f"{kept}: expected LIBERO's assets, found no folder {_lacking(kept)[0]!r}; {where}")
    return kept


@cache
def working_gl(asked: str = "auto") -> str:
    """`egl` where it draws, else `osmesa`, or the one that was asked for; UserError with what installs them.

    Tried in a process of its own: a GL library that fails can take its process along, and MuJoCo loads one only.
    """
    if importlib.util.find_spec("mujoco") is None:
        raise UserError(f"LIBERO: expected the package mujoco, found none; install it: {INSTALL}")
    found, tried = "", ("egl", "osmesa") if asked == "auto" else (asked,)
    for gl in tried:
        found = _gl_trouble(gl)
        if not found:
            return gl
    library = "libegl1 libgl1-mesa-dri" if asked == "egl" else "libosmesa6"
    raise UserError(
        f"key 'gl': expected {' or '.join(tried)} to draw, found {found!r}; install it: apt install {library}"
    )


def prepare(package: Path, assets: Path, gl: str, folder: Path) -> None:
    """Import `libero.libero` in this process, quietly; whatever it and its libraries write goes to `folder`.

    To be called before anything imports mujoco. `folder` is the caller's, to be removed after this process ends.
    """
    os.environ |= {"MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
    os.environ |= {"LIBERO_CONFIG_PATH": str(folder), "MPLCONFIGDIR": str(folder / "matplotlib")}
    paths = {"benchmark_root": package, "bddl_files": package / "bddl_files", "init_states": package / "init_files"}
    paths |= {"datasets": folder / "datasets", "assets": assets}
    partial = folder / f"config-{os.getpid()}.yaml"
    partial.write_text(yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    partial.replace(folder / "config.yaml")
    robosuite = importlib.util.find_spec("robosuite")
    if robosuite is None or robosuite.origin is None:
        raise UserError(f"LIBERO: expected the package robosuite, found none; install it: {INSTALL}")
    # Compiled functions are kept as Python keeps its own, beside their source, or else not in the home folder.
    if not os.access(Path(robosuite.origin).parent / "utils", os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(folder / "numba"))
    with _quiet():
        import libero.libero
        import robosuite as _  # noqa: F401

    # hf-libero does not read the config file's 'assets'.
    libero.libero._assets_path_cache = str(assets)


def _gl_trouble(gl: str) -> str:
    """What a process says that draws with `gl`; nothing if it could."""
    environment = os.environ | {"MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", PROBE],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no picture in {PROBE_LIMIT_S} s"
    if probe.returncode == 0:
        return ""
    said = [line for line in probe.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
    return said[-1] if said else f"status {probe.returncode}"


def _lacking(path: Path) -> list[str]:
    return [name for name in FOLDERS if not (path / name).is_dir()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log file and no advice on macros from robosuite."""
    handler, logging.FileHandler = logging.FileHandler, _NoFile  # type: ignore[misc, assignment]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.FileHandler = handler  # type: ignore[misc]
        logging.disable(logging.NOTSET)


class _NoFile(logging.NullHandler):
    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
