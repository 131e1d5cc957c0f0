"""How far a sweep is: a bar on standard error, and a line for every finished case."""

from __future__ import annotations

from rich import progress
from rich.console import Console

from stepbench.metrics.beside import SPEEDUP
from stepbench.records.run import Record
from stepbench.report import formats


class Bar:
    """Redrawn after each case: a thread that draws would forbid forking."""

    def __init__(self, total: int) -> None:
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("measuring", total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def done(self, record: Record) -> None:
        self._bar.console.print(_told(record), markup=False, highlight=False, soft_wrap=True)
        self._bar.update(self._task, advance=1, refresh=True)


def _told(record: Record) -> str:
    """A finished case in one line."""
    told = f"{record.case.chosen}: {record.outcome}"
    if record.outcome.ok:
        told += f", speed-up {formats.estimate(SPEEDUP.of(record))}"
    return formats.plain(told)
