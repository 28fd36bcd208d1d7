"""Telling somebody how a training run is doing, without the run knowing who listens."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from experiments.extras import imported

__all__ = ["Follow", "Watch", "bars", "unfollowed", "unwatched"]

Watch = Callable[[int, str], None]  # (steps done, how it stands), called after every step
Follow = Callable[[str, int], AbstractContextManager[Watch]]  # (name of the run, its steps)


def unwatched(done: int, standing: str) -> None:
    """A `Watch` that tells nobody."""
    del done, standing


@contextmanager
def unfollowed(name: str, steps: int) -> Generator[Watch, None, None]:
    """A `Follow` that tells nobody."""
    del name, steps
    yield unwatched


@contextmanager
def bars(name: str, steps: int) -> Generator[Watch, None, None]:
    """A `Follow` that draws a progress bar on the terminal, one line per run."""
    progress = imported("rich.progress")
    columns = (
        progress.TextColumn("{task.description:<7}"),
        progress.BarColumn(bar_width=18),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[standing]}"),
    )
    with progress.Progress(*columns) as display:
        task = display.add_task(name, total=steps, standing="compiling")

        def watch(done: int, standing: str) -> None:
            display.update(task, completed=done, standing=standing)

        yield watch
