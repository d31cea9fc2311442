"""`wovr COMMAND CONFIG [key=value ...]`. Names and flags are frozen: new knobs go into the config.

What takes long to load is imported inside the commands, so that `wovr --help` and completion answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from wovr.core.errors import UserError
from wovr.stages.pipeline import STAGES, load_experiment, open_workplace, run_all, run_command
from wovr_cli import convert, tools
from wovr_cli.arguments import ConfigFile, Hostfile, Nproc, Offload, Overrides, Plain, RunPath, Wandb, Zero, packaged
from wovr_cli.launch import ALONE, Ranks, is_worker, run_worker

if TYPE_CHECKING:
    from wovr.stages.experiment import Workplace

HELP = """
Improve a robot's vision-language-action policy by reinforcement learning inside a learned video world model (WoVR).

A base policy is fitted to a few demonstrations and rolled out some hundred times in the true simulator. From these
rollouts a video world model and a success classifier are trained. The policy then improves by masked GRPO in
imagination alone, from first frames and from keyframes of its own failures. A few more true rollouts bring the world
model back to the better policy (PACE), and RL goes on. Success is measured in the true simulator at the end, and so
is what the world model hallucinates.

Every stage reads what earlier ones wrote in the run folder and adds its own part. A stage that is done is skipped;
one that was interrupted goes on where it stopped.
"""

EXAMPLES = """
Examples:

\b
  wovr demo                            everything, on two CPU cores
  wovr run configs/tabletop.yaml seed=1 --run runs/seed1
                                       the same from another seed
  wovr rl configs/tabletop.yaml        one step, after those before it
  wovr train-wm configs/libero_goal.yaml --nproc 8 --zero 2
                                       training on eight GPUs
  wovr eval configs/tabletop.yaml --what world-model
                                       imagined videos beside true ones
  wovr report configs/tabletop.yaml    one HTML file of what there is so far
  wovr play runs/demo                  drive its imagination yourself
"""

SHARED = (
    "With --nproc, --zero or --hostfile the command starts itself anew in as many processes, which train and imagine "
    "together; results are those of one."
)
MEASURES = {
    "success": ("eval",),
    "hallucination": ("hallucination", "closed_loop"),
    "world-model": ("world_model_eval",),
    "actions": ("action_following",),
    "reward": ("compare_reward",),
}
"""What `wovr eval --what` takes, and the stages that measure it."""

What = Annotated[
    list[str] | None,
    typer.Option(
        metavar="|".join(MEASURES),
        help="Measure this alone; may be repeated.",
        show_default="all",
        autocompletion=lambda incomplete: [name for name in MEASURES if name.startswith(incomplete)],
    ),
]


def _overview() -> str:
    rows = [("stage", "reads", "writes"), *((name, stage.reads, stage.writes) for name, stage in STAGES.items())]
    table = "\n".join(f"  {name:17}{reads:36}{writes}" for name, reads, writes in rows)
    return f"In the run folder:\n\n\b\n{table}\n{EXAMPLES}"  # \b: keep these lines as they are


class Commands(TyperGroup):
    """Ends every command in the same way: 0, 2 for what a user can mend, 130 when interrupted."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(f"wovr: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("wovr: interrupted; the same command goes on where it stopped", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    help=HELP,
    epilog=_overview(),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@contextmanager
def _workplace(
    config: Path,
    overrides: list[str] | None,
    run: Path | None,
    plain: bool,
    wandb: str | None,
    ranks: Ranks = ALONE,
) -> Iterator[Workplace]:
    ranks.start(lambda: load_experiment(config, overrides or ()))
    from wovr.core.dist import Dist

    experiment = load_experiment(config, overrides or ())
    dist = Dist(ranks.zero, offload=ranks.offload)
    with open_workplace(experiment, run or Path("runs") / config.stem, plain=plain, wandb=wandb, dist=dist) as place:
        yield place
    dist.close()


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"wovr {importlib.metadata.version('wovr')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    overrides: Overrides = None,
    run: Annotated[Path, typer.Option(metavar="PATH", help="Run folder.")] = Path("runs/demo"),
    nproc: Nproc = 1,
    zero: Zero = "0",
    plain: Plain = False,
    wandb: Wandb = None,
) -> None:
    """Run everything at the size of two CPU cores."""
    ranks = Ranks.of(nproc, zero, False, None)
    with _workplace(packaged("configs/tabletop.yaml"), overrides, run, plain, wandb, ranks) as place:
        run_all(place)
        _print_result(place)


@app.command(name="run", help=f"Run all stages in order, from where the run folder stands.\n\n{SHARED}")
def _run(
    config: ConfigFile,
    overrides: Overrides = None,
    run: RunPath = None,
    nproc: Nproc = 1,
    zero: Zero = "0",
    offload: Offload = False,
    hostfile: Hostfile = None,
    plain: Plain = False,
    wandb: Wandb = None,
) -> None:
    with _workplace(config, overrides, run, plain, wandb, Ranks.of(nproc, zero, offload, hostfile)) as place:
        run_all(place)
        _print_result(place)


def _print_result(place: Workplace) -> None:
    """Where the run has come to its end."""
    if place.dist.is_main and place.run.stage_done("eval"):
        from wovr_cli.result import print_result

        print_result(place.run)


def _add(name: str, help_text: str) -> None:
    @app.command(name=name, help=help_text)
    def command(
        config: ConfigFile, overrides: Overrides = None, run: RunPath = None, plain: Plain = False, wandb: Wandb = None
    ) -> None:
        with _workplace(config, overrides, run, plain, wandb) as place:
            run_command(place, name)


def _add_shared(name: str, help_text: str) -> None:
    @app.command(name=name, help=f"{help_text}\n\n{SHARED}")
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        run: RunPath = None,
        nproc: Nproc = 1,
        zero: Zero = "0",
        offload: Offload = False,
        hostfile: Hostfile = None,
        plain: Plain = False,
        wandb: Wandb = None,
    ) -> None:
        with _workplace(config, overrides, run, plain, wandb, Ranks.of(nproc, zero, offload, hostfile)) as place:
            run_command(place, name)


_add_shared("sft", "Fit the base policy to a few demonstrations per task.")
_add("collect", "Roll the base policy out in the true simulator, and record it.")
_add_shared("train-wm", "Train codec, success classifier and world model on the episodes.")
_add_shared("rl", "Mine keyframes, then improve the policy in imagination.")
_add_shared("refine", "PACE: more true rollouts, a better world model, and RL again.")


@app.command(name="eval")
def eval_(
    config: ConfigFile,
    overrides: Overrides = None,
    what: What = None,
    run: RunPath = None,
    plain: Plain = False,
    wandb: Wandb = None,
) -> None:
    """Measure success, hallucination, videos, actions, and rewards."""
    for measure in what or ():
        if measure not in MEASURES:
            raise UserError(f"--what: expected {', '.join(MEASURES)}, found {measure!r}")
    stages = [stage for measure in what or MEASURES for stage in MEASURES[measure]]
    from wovr_cli.result import print_actions, print_hallucination, print_reward, print_world_model

    with _workplace(config, overrides, run, plain, wandb) as place:
        run_command(place, "eval", stages)
        if "hallucination" in stages:
            print_hallucination(place.run)
        if "world_model_eval" in stages:
            print_world_model(place.run)
        if "action_following" in stages:
            print_actions(place.run)
        if "compare_reward" in stages:
            print_reward(place.run)


_add("report", "Write one HTML file about the run, and its numbers as JSON.")


app.command(epilog=convert.EXAMPLES)(convert.convert)
for tool in (tools.study, tools.play, tools.pretrain, tools.plan, tools.doctor, tools.export):
    app.command()(tool)


def main() -> None:
    """The console script."""
    if is_worker():
        run_worker(app)
    app(prog_name="wovr")  # `python -m wovr_cli` too: completion goes by it
