"""How a metric is shown: its header, its cell, when its column appears, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepbench.metrics.metric import Metric
from stepbench.report import formats
from stepbench.report.rows import Figures, Table

Show = Callable[["Column", Table], bool]


def always(column: Column, table: Table) -> bool:
    """In every table."""
    return True


def present(column: Column, table: Table) -> bool:
    """Where some case has a value."""
    return any(figures[column.metric] is not None for figures in table.figures)


def nonzero(column: Column, table: Table) -> bool:
    """Where some case has a value that is not 0."""
    return any(figures[column.metric] for figures in table.figures)


def varies(column: Column, table: Table) -> bool:
    """Where it does not read the same in all cases."""
    return len({column.text(figures) for figures in table.figures}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Metrics that JSON nests under `key`; null where `told_by` was not observed.

    With a `title` they have a table of their own, with one `legend` below it.
    """

    key: str
    told_by: Metric[Any]
    title: str = ""
    legend: str = ""

    def told(self, figures: Figures) -> bool:
        """Whether a case has these figures.

        A baseline without a record of its own has none: its processes belong to other cases.
        """
        return bool(figures.result.rounds) and figures[self.told_by] is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A metric in tables; JSON has it by its key, whether it is shown or not.

    Attributes:
        header: what stands above it.
        legend: what it means, once below a table that shows it; columns may share one.
        show: in which tables it stands; by default where some case has a value.
        cell: makes text of the value; without it the metric's unit does.
        absent: what stands where there is no value.
        left: whether it is aligned to the left.
        group: the metrics that it belongs to in JSON.
    """

    metric: Metric[Any]
    header: str
    legend: str | Callable[[Table], str] = ""
    show: Show = present
    cell: Callable[[Any], str] | None = None
    absent: str = ""
    left: bool = False
    group: Group | None = None

    def text(self, figures: Figures) -> str:
        """The cell of a case."""
        value = figures[self.metric]
        if value is None:
            return self.absent
        return (self.cell or formats.UNITS[self.metric.unit])(value)
