"""``python -m benchmarks.readme``: the README's table of train steps, from the committed run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["rows"]

RESULTS = Path(__file__).parent / "results" / "int8.json"
_MODELS = {
    "mlp": "3072-1024-1024-10, batch 256",
    "vgg6": "six 3x3 convolutions, 32x32x3, batch 128",
    "vgg6_bn": "with batch normalization",
    "resnet": "64-128-256, norms, batch 64",
    "resnet20": "16-32-64, norms, batch 64",
    "mobilenet": "inverted residuals, norms, batch 64",
    "conv_b8": "one 3x3 convolution, batch 8",
}
_TIMES = ("f32_ms", "f32_best_ms", "int8_ms")
_RATIOS = (
    "speedup",
    "speedup_best",
    "policy_speedup_best",
    "saved_bytes_ratio",
    "temp_bytes_ratio",
)


def rows(results: Mapping[str, Any]) -> Iterator[str]:
    """A line of Markdown per case, in the order above.

    Args:
      results: what ``python -m benchmarks int8 --json FILE`` writes.
    """
    found = {row["case"]: row for row in results["rows"]}
    for case, model in _MODELS.items():
        if row := found.get(case):
            times = (f"{row[key]:.0f} ms" for key in _TIMES)
            ratios = (f"{row[key]:.2f}x" if row[key] else "–" for key in _RATIOS)
            yield " | ".join([f"| `{case}`: {model}", *times, *ratios]) + " |"


if __name__ == "__main__":
    print("\n".join(rows(json.loads(RESULTS.read_text()))))
