"""The gate's pairs in the order they were measured: one figure a case, an HTML file of its own."""

from __future__ import annotations

import math
from itertools import pairwise

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stepbench.records.pair import Figure
from stepbench.records.verdict import CaseVerdict, Gate
from stepbench.report import formats
from stepbench.report.drawing import QUIET, dressed, safe
from stepbench.report.gate_tables import FIGURES

COLOURS: dict[Figure, str] = {
    "cpu_quartile": "#1f77b4",
    "cpu_total": "#2ca02c",
    "wall_total": "#ff7f0e",
    "wall_median": "#9467bd",
}
HEIGHT = 280  # pixels a case


def page(gate: Gate) -> str:
    """An HTML page of every case that was timed; plotly's script is in it."""
    timed = [case for case in gate.cases if case.time and case.time.pairs]
    titles = [safe(f"{case.case}: {case.verdict}") for case in timed]
    figure = make_subplots(rows=max(1, len(timed)), cols=1, subplot_titles=titles)
    for row, case in enumerate(timed, start=1):
        for trace in _traces(case, first=row == 1):
            figure.add_trace(trace, row=row, col=1)
        for at in _stages(case):
            figure.add_vline(x=at, line_dash="dot", line_color=QUIET, row=row, col=1)
        figure.add_hline(y=0, line_color=QUIET, row=row, col=1)
        figure.update_yaxes(title_text="candidate slower, %", row=row, col=1)
    figure.update_xaxes(title_text="pair, in the order measured", row=max(1, len(timed)), col=1)
    dressed(figure, height=HEIGHT * max(1, len(timed)) + 80, showlegend=True)
    drawn = figure.to_html(full_html=False, include_plotlyjs=True)
    title = safe(f"{gate.candidate} against {gate.reference}")
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"
        f"<p>{safe(formats.moment(gate.started_at))}. Dotted lines: a stage begins. Crosses: "
        f"disturbed pairs, not judged by that figure.</p>{drawn}\n"
    )


def _traces(case: CaseVerdict, *, first: bool) -> list[go.Scatter]:
    """One series a figure; what was dropped is a cross."""
    assert case.time is not None
    pairs = case.time.pairs
    return [
        go.Scatter(
            x=list(range(1, len(pairs) + 1)),
            y=[100 * math.expm1(one.pair.log_ratio(figure)) for one in pairs],
            mode="lines+markers",
            name=FIGURES[figure],
            legendgroup=figure,
            showlegend=first,
            line={"width": 1, "color": COLOURS[figure]},
            marker={"symbol": ["x" if figure in one.pair.discarded else "circle" for one in pairs]},
            text=[
                safe("; ".join((one.stage, one.pair.order, *one.pair.disturbances)))
                for one in pairs
            ],
        )
        for figure in pairs[0].pair.figures
    ]


def _stages(case: CaseVerdict) -> list[float]:
    """Where a stage begins, between two pairs."""
    assert case.time is not None
    stages = [one.stage for one in case.time.pairs]
    return [
        index + 0.5
        for index, (before, after) in enumerate(pairwise(stages), start=1)
        if before != after
    ]
