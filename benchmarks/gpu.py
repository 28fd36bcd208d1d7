"""``python -m benchmarks.gpu int8|sgq|pass``: what runs on a GPU, how fast, and if it is right.

`gpu_int8`, `gpu_sgq` and `gpu_pass` say what the figures mean. Times are medians of interleaved
rounds. ``--smoke`` runs tiny sizes on any backend, to see that everything runs; its times mean
nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import gpu_int8, gpu_pass, gpu_sgq
from benchmarks.rows import line
from experiments import measure

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {"int8": gpu_int8.rows, "sgq": gpu_sgq.rows, "pass": gpu_pass.rows}


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code: 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("benchmark", choices=list(BENCHMARKS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any backend")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each program")
    parser.add_argument("--json", type=Path, help="file for the figures; named after the device")
    args = parser.parse_args(argv)
    if jax.default_backend() == "cpu" and not args.smoke:
        parser.error("jax found no GPU here: install jax[cuda13], or try the script with --smoke")
    kind = jax.devices()[0].device_kind
    found: dict[str, Any] = {"env": measure.environment() | {"device": kind, "smoke": args.smoke}}
    for name, row in BENCHMARKS[args.benchmark](args.smoke, 1 if args.smoke else args.rounds):
        found.setdefault(name, []).append(row)
        print(line(row), flush=True)
    slug = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
    name = f"gpu-{args.benchmark}-{slug}{'-smoke' if args.smoke else ''}.json"
    file = args.json or RESULTS / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {file}")
    rows = [row for rows in found.values() if isinstance(rows, list) for row in rows]
    return 0 if all(value is not False for row in rows for value in row.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
