"""Where each case's step goes: a bar a case, stacked from its parts, drawn by plotly."""

from __future__ import annotations

import plotly.graph_objects as go

from stepbench.metrics.time import PARTS
from stepbench.report import formats
from stepbench.report.drawing import dressed, measured, safe
from stepbench.report.rows import Table

# In the order of PARTS; what is not computing stands out.
COLOURS = ("#d55e00", "#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#888888")
BAR_HEIGHT, MARGINS = 22, 150


def draw(table: Table) -> go.Figure | None:
    """The step budget of every case that has one; None where no step was marked inside."""
    bars = [(row.name, one.budget) for row, one in measured(table.rows) if one.budget]
    if not bars:
        return None
    figure = go.Figure()
    for part, colour in zip(PARTS, COLOURS, strict=True):
        figure.add_trace(
            go.Bar(
                name=part,
                orientation="h",
                y=[safe(name) for name, _ in bars],
                x=[budget[part] * 1e3 for _, budget in bars],
                marker={"color": colour},
                hovertemplate=[
                    f"<b>{safe(name)}</b><br>{part} {formats.milliseconds(budget[part])} ms"
                    "<extra></extra>"
                    for name, budget in bars
                ],
            )
        )
    above = {"orientation": "h", "yanchor": "bottom", "y": 1.0, "traceorder": "normal"}
    figure.update_layout(barmode="stack", legend=above)
    figure.update_xaxes(title="ms of a step", gridcolor="rgba(128,128,128,0.25)")
    figure.update_yaxes(autorange="reversed")
    return dressed(figure, height=MARGINS + BAR_HEIGHT * len(bars), showlegend=True)
