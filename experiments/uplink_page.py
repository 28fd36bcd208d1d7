"""``python -m experiments.uplink_page``: the tables of ``docs/uplink.md``, from committed runs."""

from pathlib import Path

from experiments import results
from experiments.uplink import CONFIGS, markdown

__all__ = ["PAGE", "RUNS", "with_tables"]

_ROOT = Path(__file__).resolve().parent
PAGE = _ROOT.parent / "docs" / "uplink.md"
RUNS = _ROOT / "results" / "uplink"
_BEGIN, _END = "<!-- the tables of the runs -->\n", "<!-- up to here -->\n"


def with_tables(page: str) -> str:
    """The page with the tables of the runs there are now."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + "\n" + "\n".join(_tables()) + "\n\n" + _END + after


def _tables() -> list[str]:
    """Lines of Markdown: of every configuration what it was and its table."""
    lines = []
    for name, config in CONFIGS.items():
        record = results.read(RUNS / f"{name}-{results.digest(config)}.json")
        metrics = record["metrics"]
        frames, keys = len(metrics["key"]), sum(metrics["key"])
        key_bytes = sum(b for b, key in zip(metrics["bytes"], metrics["key"], strict=True) if key)
        equal = "in every frame" if metrics["equal"] else "**not** in every frame"
        lines += [
            f"**`{name}`**, features {metrics['shape']}, {frames} frames of which {keys} are key "
            f"frames: {sum(metrics['whole']) / sum(metrics['bytes']):.1f} times fewer bytes than "
            f"all frames whole; key frames are {key_bytes / sum(metrics['bytes']):.0%} of what is "
            f"sent. The cloud's features were the device's {equal}.",
            "",
            *markdown(record),
            "",
        ]
    return lines[:-1]


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
