"""The technique matrix: a table's combinations as a grid, and its drawing by plotly."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stepbench.metrics.beside import MEMORY_RATIO, SPEEDUP
from stepbench.metrics.memory import PEAK_BYTES
from stepbench.metrics.time import STEP_S
from stepbench.records.case import Combination
from stepbench.report import formats
from stepbench.report.drawing import dressed, hover, safe
from stepbench.report.rows import Figures, Row, Table

BETTER, EVEN, WORSE = "#6baed6", "#f3f3f3", "#f4a261"  # all light enough for dark text
SATURATED_AT = 2.0  # a factor of this size has the full colour
CELL_LETTERS = 18  # in a line of a cell without a number
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows by (line, column): `axis` names what the columns are, lines combine the other axes.

    A place that was not measured is missing from `cells`.
    """

    axis: str
    lines: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Row]


def arrange(table: Table) -> Matrix | None:
    """Lay a table out as a grid whose columns are the axis with the most techniques.

    Of axes with equally many the first one in the order of combinations is taken. None where no
    technique was measured.
    """
    longest_first = sorted(table.rows, key=lambda row: -len(row.case.combination.techniques))
    values: dict[str, set[str]] = {}
    for row in longest_first:
        for axis, technique in row.case.combination.techniques.items():
            values.setdefault(axis, set()).add(technique)
    if not values:
        return None
    chosen = max(values, key=lambda axis: len(values[axis]))
    cells = {_place(row, chosen): row for row in table.rows}
    lines = dict.fromkeys(line for line, _ in cells)
    columns = dict.fromkeys(column for _, column in cells)
    return Matrix(chosen, tuple(lines), tuple(columns), cells)


def _place(row: Row, axis: str) -> tuple[str, str]:
    """The labels of a row's line (its combination without `axis`) and column (what is on it)."""
    techniques = dict(row.case.combination.techniques)
    column = techniques.pop(axis, "baseline")
    line = str(Combination(techniques))
    return line + row.case.spread, column


def draw(matrix: Matrix) -> go.Figure:
    """Speed-up and memory ratio side by side; outcome and reason stand in the other cells."""
    titles = ("Speed-up and step time", "Memory ratio and peak")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02)
    for side, speed in enumerate((True, False), start=1):
        figure.add_trace(_heat_map(matrix, speed), 1, side)
        figure.add_trace(_words(matrix), 1, side)
    figure.update_xaxes(
        tickvals=list(range(len(matrix.columns))),
        ticktext=[safe(column) for column in matrix.columns],
        range=[-0.5, len(matrix.columns) - 0.5],
        title=safe(matrix.axis),
    )
    figure.update_yaxes(
        tickvals=list(range(len(matrix.lines))),
        ticktext=[safe(line) + " " for line in matrix.lines],
        range=[len(matrix.lines) - 0.5, -0.5],
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(showgrid=False, zeroline=False, ticks="")
    return dressed(figure, height=130 + 52 * len(matrix.lines), showlegend=False)


def _heat_map(matrix: Matrix, speed: bool) -> go.Heatmap:
    shades: list[list[float | None]] = []
    numbers, boxes = [], []
    for line in matrix.lines:
        cells = [matrix.cells.get((line, column)) for column in matrix.columns]
        figures = [cell.figures if cell else None for cell in cells]
        shades.append([_shade(known, speed) if known else None for known in figures])
        numbers.append([_number(known, speed) if known else "" for known in figures])
        boxes.append([hover(cell) if cell else NOT_MEASURED for cell in cells])
    return go.Heatmap(
        z=shades,
        text=numbers,
        texttemplate="%{text}",
        textfont={"color": "#222222", "size": 11},
        hovertext=boxes,
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=True,
        colorscale=[(0, WORSE), (0.5, EVEN), (1, BETTER)],
        zmin=-1,
        zmax=1,
        showscale=False,
        xgap=2,
        ygap=2,
    )


def _shade(figures: Figures, speed: bool) -> float:
    """How much better than the baseline: 0 as good, 1 and -1 by SATURATED_AT or more."""
    factor: float = figures[SPEEDUP].median if speed else 1 / figures[MEMORY_RATIO].median
    return max(-1.0, min(1.0, math.log(factor, SATURATED_AT)))


def _number(figures: Figures, speed: bool) -> str:
    if not speed:
        ratio = formats.ratio(figures[MEMORY_RATIO].median)
        return f"<b>{ratio}</b><br>{formats.mebibytes(figures[PEAK_BYTES])} MiB"
    median, _, interval = formats.estimate(figures[SPEEDUP]).partition(" ")
    doubt = " *" if figures.disturbances else ""
    lines = (f"<b>{median}</b>{doubt}", interval, f"{formats.milliseconds(figures[STEP_S])} ms")
    return "<br>".join(filter(None, lines))


def _words(matrix: Matrix) -> go.Scatter:
    """Outcome and the start of its reason in every cell that has no number."""
    xs, ys, words = [], [], []
    for y, line in enumerate(matrix.lines):
        for x, column in enumerate(matrix.columns):
            cell = matrix.cells.get((line, column))
            if cell is None or cell.figures is None:
                xs.append(x)
                ys.append(y)
                words.append(_outcome(cell) if cell else NOT_MEASURED)
    return go.Scatter(x=xs, y=ys, text=words, mode="text", hoverinfo="skip", textfont={"size": 10})


def _outcome(cell: Row) -> str:
    reason = formats.plain(cell.outcome.reason or "")
    lines = textwrap.wrap(reason, CELL_LETTERS, max_lines=2, placeholder=" …")
    return "<br>".join([f"<b>{safe(cell.outcome.kind)}</b>", *map(safe, lines)])
