"""What the page's figures share: the box beside the pointer, and one dress for all.

Every text that comes from records is escaped: plotly reads HTML in labels and hover boxes.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go

from stepbench.metrics.beside import LOSS_DIFFERENCE, MEMORY_RATIO, SPEEDUP
from stepbench.metrics.memory import PEAK_BYTES, WORKING_BYTES
from stepbench.metrics.time import ITEMS_PER_S, STEP_S
from stepbench.report import formats
from stepbench.report.rows import Figures, Row

QUIET = "#888888"  # readable on light and on dark
HOVER_LETTERS = 60  # in a line of a reason


def safe(text: str) -> str:
    """One line of text from a record that shows as it is, in plotly and in HTML."""
    return html.escape(formats.plain(text))


def measured(rows: Sequence[Row]) -> list[tuple[Row, Figures]]:
    """The rows that have figures, with them."""
    return [(row, row.figures) for row in rows if row.figures is not None]


def hover(row: Row) -> str:
    """All that is known of a row, for the box beside the pointer."""
    figures = row.figures
    if figures is None:
        lines = textwrap.wrap(formats.plain(str(row.outcome)), HOVER_LETTERS)
    else:
        speedup = figures[SPEEDUP]
        working_mib = formats.mebibytes(figures[WORKING_BYTES])
        lines = [
            f"step {formats.milliseconds(figures[STEP_S])} ms",
            f"{formats.rate(figures[ITEMS_PER_S])} items/s",
            f"speed-up {formats.estimate(speedup)} over {speedup.rounds} rounds",
            f"peak {formats.mebibytes(figures[PEAK_BYTES])} MiB",
            f"beyond parameters and optimizer state {working_mib} MiB",
            f"memory {formats.estimate(figures[MEMORY_RATIO])}",
            f"loss difference {formats.difference(figures[LOSS_DIFFERENCE])}",
            *(f"disturbed: {one}" for one in figures.disturbances),
        ]
    return "<br>".join([f"<b>{safe(row.name)}</b>", *map(safe, lines)])


def dressed(figure: go.Figure, *, height: int, showlegend: bool) -> go.Figure:
    """The figure without background, so that it takes the page's light or dark."""
    return figure.update_layout(
        template="none",
        height=height,
        showlegend=showlegend,
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
        xaxis={"automargin": True},
        yaxis={"automargin": True},
    )
