"""Progress bars for long work: what is done, how fast, and how long it will take."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WIDE = 240
"""Columns where the output is no terminal: names in a table are then never broken."""

console = Console(width=None if sys.stdout.isatty() else WIDE)
_errors = Console(stderr=True)
T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` under a bar with count, elapsed time and ETA.

    The bar goes to stderr; where that is no terminal (a log file, a script) there is none.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, disable=not _errors.is_terminal) as progress:
        yield from progress.track(items, description=description, total=total)
