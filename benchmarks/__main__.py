"""``python -m benchmarks <name>``: measures, prints tables, writes JSON."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import clips, int8, peers, portable, rate, sgq, skip, skip_gradient
from experiments import measure
from experiments.errors import UserError

__all__ = ["main"]

BENCHMARKS = {
    "int8": int8,
    "sgq": sgq,
    "rate": rate,
    "pass": skip,
    "pass_gradient": skip_gradient,
    "clips": clips,
    "portable": portable,
}


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    benchmark = BENCHMARKS[args.benchmark]
    if unknown := set(args.case) - set(benchmark.CASES):
        _parser().error(f"no case {sorted(unknown)}: choose from {', '.join(benchmark.CASES)}")
    options = {"rounds": 3, "shrink": 16} if args.quick else {"rounds": args.rounds}
    environment: dict[str, Any] = {**measure.environment(), "peers": peers.versions()}
    rows = []
    for name in args.case or benchmark.CASES:
        print(f"{name}: compiling and running {options['rounds']} rounds ...", flush=True)
        try:
            found = benchmark.run(name, **options)
        except UserError as error:
            _parser().error(str(error))
        print("\n\n".join(map(getattr(benchmark, "table", _table), found)), flush=True)
        rows += found
    environment["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    environment["quick"] = args.quick
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"env": environment, "rows": rows}, indent=2) + "\n")
        print(f"written to {args.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--case", action="append", default=[], help="only this case (repeatable)")
    parser.add_argument("--quick", action="store_true", help="small batches: to see that it runs")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each program")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser


def _table(row: dict[str, Any]) -> str:
    """One row, a metric a line; a metric without a value is of a peer that is not installed."""
    numbers = {key: value for key, value in row.items() if key != "case"}
    width = max(map(len, numbers))
    written = lambda value: "not installed" if value is None else f"{value:10.3f}"
    lines = (f"  {key:<{width}}  {written(value)}" for key, value in numbers.items())
    return "\n".join([row["case"], *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
