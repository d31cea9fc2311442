"""What commands share: their arguments, and the files that ship with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, as configs/tabletop.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values over those of the file, as rl.updates=60.")
]
RunPath = Annotated[
    Path | None, typer.Option("--run", metavar="PATH", help="Run folder.", show_default="runs/<name of the config>")
]
Plain = Annotated[bool, typer.Option("--plain", help="Print lines instead of progress bars.")]
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
    """A file that ships with wovr, such as `configs/tabletop.yaml`: linked in a checkout, copied into a wheel."""
    return Path(__file__).parent / name
