"""What commands share: their arguments, and the files that ship with them."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer


def complete_config(incomplete: str) -> list[str]:
    """YAML files that begin so, here and one folder further; where there is none the shell completes by itself."""
    start = glob.escape(incomplete)
    return sorted(glob.glob(f"{start}*.yaml") + glob.glob(f"{start}*/*.yaml"))


def complete_run(incomplete: str) -> list[str]:
    """Run folders that begin so, here and one folder further."""
    start = glob.escape(incomplete)
    found = glob.glob(f"{start}*/manifest.json") + glob.glob(f"{start}*/*/manifest.json")
    return sorted(str(Path(path).parent) for path in found)


ConfigFile = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="YAML file, as configs/tabletop.yaml.", autocompletion=complete_config),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values over those of the file, as rl.updates=60.")
]
RunPath = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="PATH",
        help="Run folder.",
        show_default="runs/<name of the config>",
        autocompletion=complete_run,
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Print lines, where a terminal would show one live picture.")]
Wandb = Annotated[str | None, typer.Option(metavar="PROJECT", help="Log to wandb too; offline where there is no key.")]
Nproc = Annotated[int, typer.Option(metavar="N", min=1, help="Processes, one per GPU.")]
Zero = Annotated[
    str, typer.Option(metavar="STAGE", help="Shard under DeepSpeed: ZeRO stage 1, 2 or 3, or its settings as JSON.")
]
Offload = Annotated[bool, typer.Option("--offload", help="Keep what is sharded of the optimizer in CPU memory.")]
Hostfile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Machines, one a line: worker-1 slots=8. Reached by ssh.")
]


def packaged(name: str) -> Path:
    """A file that ships with wovr, such as `configs/tabletop.yaml`: linked in a checkout, copied into a wheel.

    A source distribution holds no links, and may be installed in place.
    """
    file = Path(__file__).parent / name
    return file if file.exists() else Path(__file__).parents[2] / name
