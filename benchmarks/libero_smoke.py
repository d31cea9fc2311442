"""The whole loop in the real LIBERO simulator, small: configs/libero_smoke.yaml, within an hour on two cores.

One scripted demonstrator, one task, a policy of a million parameters, a world model trained for some minutes: it shows
that everything runs and what comes out, not what the method can do. The run folder holds the report, with imagined
beside true frames; an interrupted run goes on. Needs `wovr[libero]` and its assets, as
`wovr doctor configs/libero_smoke.yaml` says.

    python benchmarks/libero_smoke.py [--run runs/libero_smoke] --out benchmarks/results/libero-smoke_HARDWARE_DATE.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from machine import write

from wovr.core.checkpoint import read_json
from wovr.core.run import RunFolder
from wovr.episodes.store import EpisodeStore
from wovr.metrics.success import Rate
from wovr.stages.pipeline import load_experiment, open_workplace, run_all

CONFIG = Path(__file__).parents[1] / "configs" / "libero_smoke.yaml"


def recorded(path: Path) -> dict[str, Any]:
    """Success and length of the recorded episodes by purpose."""
    store = EpisodeStore(path / "episodes")
    infos = [store.info(name) for name in store.names]
    found = {}
    for purpose in dict.fromkeys(info.purpose for info in infos):
        own = [info for info in infos if info.purpose == purpose]
        rate = Rate.of([info.success for info in own])
        found[purpose] = rate.to_dict() | {"mean_steps": round(sum(info.length for info in own) / len(own), 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/libero_smoke"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    with open_workplace(load_experiment(CONFIG, args.overrides), args.run, plain=True) as place:
        run_all(place)
    stages = RunFolder.read(args.run).stages()
    result = read_json(args.run / "report" / "summary.json") | {
        "recorded": recorded(args.run),
        "summaries": {name: stages[name]["summary"] for name in ("codec", "reward", "world_model", "keyframes")},
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
