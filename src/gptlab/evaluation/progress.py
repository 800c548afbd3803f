"""The progress bar of an evaluation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with how many were done since the last call; the bar goes to standard error."""
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    # A thread that draws would take its time from the model.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)

        def advance(n: int) -> None:
            bar.update(task, advance=n, refresh=True)

        yield advance
