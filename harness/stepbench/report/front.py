"""The step-time/memory front: what nothing else beats in both, and its drawing by plotly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from stepbench.metrics.memory import PEAK_BYTES
from stepbench.metrics.time import STEP_S
from stepbench.report.drawing import QUIET, dressed, hover, measured, safe
from stepbench.report.matrix import Matrix
from stepbench.report.rows import Row

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d")
LABELS_APART = 0.05  # of the range of peak memory
LOGARITHMIC_FROM = 5.0  # the largest step time over the smallest


def best(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both step time and peak memory, fastest first."""
    kept = []
    lowest_bytes = math.inf
    by_time = sorted(measured(rows), key=lambda pair: (pair[1][STEP_S], pair[1][PEAK_BYTES]))
    for row, figures in by_time:
        if figures[PEAK_BYTES] < lowest_bytes:
            kept.append(row)
            lowest_bytes = figures[PEAK_BYTES]
    return kept


def draw(matrix: Matrix) -> go.Figure:
    """Every measured case by step time and peak memory, coloured by the matrix's columns.

    ValueError where nothing was measured.
    """
    rows = list(matrix.cells.values())
    figure = go.Figure(_line(best(rows)))
    for index, column in enumerate(matrix.columns):
        mine = [row for (_, where), row in matrix.cells.items() if where == column]
        colour = SERIES[index % len(SERIES)]
        figure.add_trace(_points(mine, safe(f"{matrix.axis}: {column}"), colour))
    figure.add_traces([_baseline_mark(rows), _labels(rows)])
    lines = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    times_ms = _positions(rows)["x"]
    figure.update_xaxes(title="step time, ms", **lines, **_time_axis(min(times_ms), max(times_ms)))
    figure.update_yaxes(title="peak memory of a steady step, MiB", **lines)
    figure.update_layout(legend={"orientation": "h", "y": -0.18})
    return dressed(figure, height=520, showlegend=True)


def _line(rows: Sequence[Row]) -> go.Scatter:
    return go.Scatter(
        **_positions(rows),
        mode="lines",
        line={"shape": "hv", "dash": "dot", "color": QUIET},
        name="front",
        hoverinfo="skip",
    )


def _points(rows: Sequence[Row], name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        **_positions(rows),
        mode="markers",
        name=name,
        marker={"size": 10, "color": colour},
        hovertext=[hover(row) for row, _ in measured(rows)],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _baseline_mark(rows: Sequence[Row]) -> go.Scatter:
    return go.Scatter(
        **_positions([row for row in rows if row.name == "baseline"]),
        mode="markers",
        name="baseline",
        marker={"size": 18, "symbol": "diamond-open", "color": QUIET, "line": {"width": 2}},
        hoverinfo="skip",
    )


def _labels(rows: Sequence[Row]) -> go.Scatter:
    """Names of the front's points, at their lower left where no point can be; none over another."""
    peaks_bytes = [figures[PEAK_BYTES] for _, figures in measured(rows)]
    apart_bytes = LABELS_APART * (max(peaks_bytes) - min(peaks_bytes))
    named: list[Row] = []
    last_bytes = -math.inf
    for row, figures in reversed(measured(best(rows))):
        if figures[PEAK_BYTES] - last_bytes > apart_bytes:
            named.append(row)
            last_bytes = figures[PEAK_BYTES]
    return go.Scatter(
        **_positions(named),
        mode="markers+text",
        text=[safe(row.name) for row in named],
        textposition="bottom left",
        marker={"size": 10, "opacity": 0},  # keeps the text clear of the point beneath
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )


def _positions(rows: Sequence[Row]) -> dict[str, list[float]]:
    pairs = measured(rows)
    return {
        "x": [figures[STEP_S] * 1e3 for _, figures in pairs],
        "y": [figures[PEAK_BYTES] / 2**20 for _, figures in pairs],
    }


def _time_axis(low_ms: float, high_ms: float) -> dict[str, Any]:
    """Logarithmic where one case is many times slower; room at the left for the labels."""
    logarithmic = high_ms / low_ms > LOGARITHMIC_FROM
    low, high = (math.log10(low_ms), math.log10(high_ms)) if logarithmic else (low_ms, high_ms)
    axis = {"range": [low - 0.15 * (high - low), high + 0.05 * (high - low)]}
    if not logarithmic:
        return axis
    # plotly's own ticks between powers of ten show one digit without its power.
    exponents = range(math.floor(low), math.ceil(high))
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 3, 5, 7)]
    return {**axis, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
