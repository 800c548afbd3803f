"""The progress bar of an evaluation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(
    what: str, total: int, *, show: bool, between: Callable[[], None] = lambda: None
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call between two batches, with how many were done since the last call; 0 draws nothing.

    The bar goes to standard error. `between` is called each time, and may raise to end the evaluation there.
    """
    if not show:
        yield lambda n: between()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    # A thread that draws would take its time from the model.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)

        def advance(n: int) -> None:
            if n:
                bar.update(task, advance=n, refresh=True)
            between()

        yield advance
