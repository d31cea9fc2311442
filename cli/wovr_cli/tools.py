"""Commands that stand beside the stages: pretraining, plans, the state of a machine, export.

What loads torch is imported inside them.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from wovr.core.errors import UserError
from wovr.stages.pipeline import load_experiment
from wovr_cli.arguments import ConfigFile, Overrides, Plain, RunPath, Wandb, complete_run, packaged


def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help="Folder of the weights and their card.")] = Path(
        "data/pretrained"
    ),
    plain: Plain = False,
    wandb: Wandb = None,
) -> None:
    """Make the pretrained codec and world model, from undirected play.

    Those that ship with wovr are made by configs/pretrain.yaml, in about three hours on two CPU cores with AMX.
    """
    from wovr.core.config import load_config
    from wovr.core.dist import Dist
    from wovr.core.log import RunLog
    from wovr.stages import pretrain as stage

    settings, dist = load_config(stage.PretrainConfig, config, overrides or ()), Dist()
    with closing(RunLog(Path("runs/pretrain"), plain=plain, wandb_project=wandb, active=dist.is_main)) as log:
        stage.run(settings, out, log, dist)


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=0, help="One process each; 0 plans for this machine's CPU.")] = 1,
    gpu_memory: Annotated[float, typer.Option(metavar="GB", help="Of one GPU.")] = 80.0,
    zero: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage of training; 0 is without DeepSpeed.")] = 0,
    offload: Annotated[bool, typer.Option("--offload", help="Optimiser's states in host memory.")] = False,
    tflops: Annotated[
        float | None, typer.Option(help="Rate of one GPU's bf16 matrix products.", show_default="790, an H200's")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all parts of all stages here.")] = None,
) -> None:
    """Say what an experiment takes: memory, FLOPs, disk and time.

    Nothing is run, and neither weights nor a run folder are needed. Where a stage does not fit, it says what to change,
    and exits with 1.
    """
    from wovr.core.checkpoint import write_json
    from wovr.stages.plan import advise, make_plan
    from wovr.stages.plan_machine import this_machine
    from wovr.stages.plan_networks import Networks
    from wovr_cli.plan import print_plan

    experiment = load_experiment(config, overrides or ())
    machine = this_machine(gpus, gpu_memory, zero=zero, offload=offload, tflops=tflops)
    networks = Networks(experiment, machine.gpus > 0)
    found = make_plan(experiment, machine, networks)
    if json:
        write_json(json, found.to_dict())
    print_plan(found, advise(experiment, machine, networks) if found.too_large else None)
    if found.too_large:
        raise typer.Exit(1)


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", show_default="the demo's")] = None,
    overrides: Overrides = None,
    run: RunPath = None,
) -> None:
    """Say what this machine lacks for CONFIG, and what mends it.

    Exits with 1 where something that CONFIG needs is missing. Nothing is changed or downloaded.
    """
    from wovr_cli.doctor import print_checks

    path = config or packaged("configs/tabletop.yaml")
    folder = run or Path("runs") / (config.stem if config else "demo")
    if not print_checks(path, overrides or (), folder):
        raise typer.Exit(1)


def play(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", autocompletion=complete_run)],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; others than loopback ask for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8420,
    seed: Annotated[int, typer.Option(min=0, help="Of the starts, of imagination and of the policy.")] = 0,
) -> None:
    """Drive the imagined environment of a run, on a local web page.

    The world model answers to keyboard or touch; the true simulator can follow the same actions beside it, and the
    run's policies can drive. Nothing is written. Ctrl-C ends it.
    """
    from wovr.serve.server import play as serve

    def say(address: str) -> None:
        print(f"wovr play: {address}\nCtrl-C ends it.", flush=True)

    serve(run, host, port, seed, say)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", autocompletion=complete_run)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Safetensors file to write; of a policy, a folder.")],
    what: Annotated[str, typer.Option(metavar="world-model|policy", help="What to write.")] = "world-model",
) -> None:
    """Write the newest world model or policy as they are published.

    Of a world model the names of the tensors are those of Wan2.2 plus `action_mlp1` and `action_mlp2`, in bf16. The
    same file serves as `world_model.pretrained`, with the network's sizes and switches in `world_model.dit`; other
    programs know a network of residual actions without `action_positions`, `action_sums` and `causal_context` only.

    A policy is written as OpenVLA-OFT's are, its adapters merged, and serves as `policy.pretrained`.
    """
    if what not in ("world-model", "policy"):
        raise UserError(f"--what: expected world-model or policy, found {what!r}")
    if what == "policy":
        _export_policy(run, out)
        return
    from wovr.dit.weights import save_wan
    from wovr.imagine.load import DIT, load_dit, newest

    dit, _, _ = load_dit(newest(run, DIT))
    save_wan(out, dit)
    print(f"wrote {out}")


def _export_policy(run: Path, out: Path) -> None:
    from wovr.imagine.load import newest
    from wovr.policy.files import load_policy
    from wovr.policy.small import SmallVLA
    from wovr.stages.rl import IMAGINATION
    from wovr.stages.sft import POLICY

    path = newest(run, IMAGINATION) if (run / IMAGINATION).is_file() else run / POLICY
    policy = load_policy(path)
    if isinstance(policy, SmallVLA):
        raise UserError(f"{path}: expected an OpenVLA-OFT, found the embedded policy, which has no published form")
    from wovr.policy.openvla_oft.published import save_published

    save_published(out, policy)
    print(f"wrote {out}")


def study(
    config: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file, as configs/study.yaml.")],
    cell: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this cell alone; may be repeated.", show_default="all")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of this seed alone; may be repeated.", show_default="all")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after so many cells; 0 writes the tables.")] = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help="Folder of the run folders.")] = Path("runs/study"),
    results: Annotated[Path, typer.Option(metavar="PATH", help="Folder of the finished cells.")] = Path(
        "benchmarks/results/study"
    ),
    document: Annotated[Path, typer.Option(metavar="FILE", help="Markdown that takes up the tables.")] = Path(
        "docs/study.md"
    ),
    plain: Plain = False,
) -> None:
    """Compare variants of the method over seeds, at equal budget.

    One cell, a variant with one seed, is run at a time. What variants share is computed once. A finished cell is a
    file and is not run again; the same command goes on where it stopped. The tables are brought up to date after
    each.
    """
    from wovr.core.config import load_config
    from wovr.stages.study import StudyConfig, run_study
    from wovr.stages.study_table import write_tables

    settings = load_config(StudyConfig, config, [])
    left = run_study(
        settings,
        out,
        results,
        cells=tuple(cell or ()),
        seeds=tuple(seed or ()),
        limit=limit,
        plain=plain,
        after=lambda: write_tables(settings, results, document),
    )
    print(f"study: {left} cells are left" if left else "study: complete")
