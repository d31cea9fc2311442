"""Published networks that perceptual metrics rest on: their files, where they are looked up, how they are read.

wovr downloads nothing. Each file is a plain state dict that is read with `weights_only=True` into a module of ours
whose parameters have the names of the file. So no code comes with the weights, which TorchScript files, the other
form in which some of these networks are published, would bring.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from wovr.core.checkpoint import fill, load_torch_file
from wovr.core.errors import UserError

WEIGHTS_VARIABLE = "WOVR_METRIC_WEIGHTS"
"""Environment variable with the folder of the files, where the config names none."""


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file under the name that it was published with."""

    name: str
    origin: str


ALEXNET = PublishedFile("alexnet-owt-7be5be79.pth", "torchvision's AlexNet_Weights.IMAGENET1K_V1")
INCEPTION = PublishedFile("pt_inception-2015-12-05-6726825d.pth", "pytorch-fid's release fid_weights")
I3D = PublishedFile("i3d_pretrained_400.pt", "VideoGPT's I3D for FVD")
RAFT = PublishedFile("raft_large_C_T_SKHT_V2-ff5fadd5.pth", "torchvision's Raft_Large_Weights.C_T_SKHT_V2")

FILES = {"lpips": (ALEXNET,), "fid": (INCEPTION,), "fvd": (I3D,), "flolpips": (ALEXNET, RAFT)}
"""Files of each metric."""


def find_files(metrics: Collection[str], folder: Path | None) -> dict[PublishedFile, Path]:
    """Where the files of `metrics` lie: in `folder`, else in WOVR_METRIC_WEIGHTS. UserError names those missing."""
    needed = dict.fromkeys(file for metric in metrics for file in FILES[metric])
    if not needed:
        return {}
    place = folder or (Path(os.environ[WEIGHTS_VARIABLE]) if os.environ.get(WEIGHTS_VARIABLE) else None)
    missing = [file for file in needed if place is None or not (place / file.name).is_file()]
    if place is None or missing:
        files = " and ".join(f"{file.name} ({file.origin})" for file in missing)
        unset = f"since neither world_model_eval.weights nor {WEIGHTS_VARIABLE} names a folder"
        where = f"in {place}" if place else unset
        raise UserError(f"metrics {', '.join(metrics)}: expected {files}, found none {where}; fetch what is missing")
    return {file: place / file.name for file in needed}


def load_published(path: Path, module: nn.Module, *, without: str = "") -> None:
    """Fill `module` from a published file. Weights whose name starts with `without` belong to parts that it lacks.

    UserError where the file is damaged, holds more than tensors or does not fit.
    """
    tensors = load_torch_file(path)
    if without:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(without)}
    # Counters of training steps, which older files lack and inference does not read.
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    fill(module, counters | tensors, path)
