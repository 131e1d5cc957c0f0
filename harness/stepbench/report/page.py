"""One page for all runs: technique matrix, step-time/memory front and result table of each.

It works from a file with no network: plotly's script lies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from stepbench.report import budget, formats, front, matrix
from stepbench.report.column import Column
from stepbench.report.columns import BUDGET_LEGEND, COLUMNS
from stepbench.report.drawing import measured, safe
from stepbench.report.rows import Table, tables
from stepbench.report.tables import LEGEND, caption, grid, group_grids
from stepbench.store import RunFile

PAGE = "techniques.html"
SCRIPT = "plotly.min.js"
NO_POSITIONS: Mapping[str, int] = {}

# Plots inside a closed <details> have no size until it opens; their text follows the page's colour.
DOCUMENT = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Stepbench: techniques</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1400px; margin: auto; padding: 1em 2em; }
h1 { font-size: 1.6em; margin-bottom: 0; }
h2 { font-size: 1.25em; margin: 2.5em 0 0; border-top: 1px solid #8886; padding-top: 1em; }
h3 { font-size: 1.05em; margin: 1.5em 0 0.2em; }
p { margin: 0.2em 0; }
.quiet, .notes { opacity: 0.8; font-size: 0.9em; }
.notes { list-style: none; padding: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #8884; white-space: nowrap; }
th { text-align: left; }
details { margin-top: 1.5em; }
summary { cursor: pointer; }
</style>
<script src="$script"></script>
</head>
<body>
<h1>What each training technique buys</h1>
$body
<script>
const plots = within => within.querySelectorAll(".plotly-graph-div");
for (const details of document.querySelectorAll("details"))
  details.addEventListener("toggle", () => plots(details).forEach(Plotly.Plots.resize));
const recolour = () => plots(document).forEach(plot =>
  Plotly.relayout(plot, {"font.color": getComputedStyle(document.body).color}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
recolour();
</script>
</body>
</html>
""")


def write(
    files: Sequence[RunFile],
    folder: Path,
    positions: Mapping[str, int] = NO_POSITIONS,
    columns: Sequence[Column] = COLUMNS,
) -> Path:
    """Write the page of all `files` and plotly's script into `folder`, and return the page's path.

    Runs stand by machine and workload, that of the latest commit open and the others folded below
    it. `positions` are commits' places in history; what has none comes after, by when it was
    measured. OSError if the folder cannot be written.
    """
    body = "\n".join(_section(history, columns) for history in _histories(files, positions))
    nothing = "<p>No records yet: <code>stepbench run</code> makes the first.</p>"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
    page = folder / PAGE
    page.write_text(DOCUMENT.substitute(script=SCRIPT, body=body or nothing), encoding="utf-8")
    return page


def _histories(files: Sequence[RunFile], positions: Mapping[str, int]) -> list[list[Table]]:
    """The tables of each machine and workload, the latest commit's first."""

    def place(file: RunFile) -> tuple[int, str, str]:
        return positions.get(file.run.commit or "", -1), file.run.started_at, file.run.id

    histories: dict[tuple[str, str], list[Table]] = {}
    for file in sorted(files, key=place, reverse=True):
        for table in tables(file):
            histories.setdefault((file.run.machine["name"], table.workload), []).append(table)
    return list(histories.values())


def _section(history: Sequence[Table], columns: Sequence[Column]) -> str:
    newest, *older = history
    parts = [f"<h2>{safe(caption(newest)[0])}</h2>", _one_run(newest, columns)]
    for table in older:
        run = table.run
        versions = f"{run.source}, torch {run.software['torch']}"
        which = f"Earlier: {versions}, {formats.moment(run.started_at)}"
        earlier = _one_run(table, columns)
        parts.append(f"<details><summary>{safe(which)}</summary>{earlier}</details>")
    return "\n".join(parts)


def _one_run(table: Table, columns: Sequence[Column]) -> str:
    text, notes = grid(table, "html", formats.plain, columns)  # tabulate escapes the cells
    return "\n".join(
        [
            f'<p class="quiet">{"<br>".join(map(safe, caption(table)[1:]))}</p>',
            *_drawings(table),
            "<h3>Every case</h3>",
            f'<div class="scroll">{text}</div>',
            '<ul class="notes">' + "".join(f"<li>{safe(note)}</li>" for note in notes) + "</ul>",
            *map(_quiet, LEGEND),
            *_further(table, columns),
        ]
    )


def _further(table: Table, columns: Sequence[Column]) -> list[str]:
    parts = []
    if (budgets := budget.draw(table)) is not None:
        parts += ["<h3>Step budget</h3>", _quiet(BUDGET_LEGEND), _drawing(budgets)]
    for group, text in group_grids(table, "html", formats.plain, columns):
        parts += [f"<h3>{safe(group.title)}</h3>", f'<div class="scroll">{text}</div>']
        parts += [_quiet(group.legend)]
    return parts


def _quiet(line: str) -> str:
    return f'<p class="quiet">{safe(line)}</p>'


def _drawings(table: Table) -> list[str]:
    layout = matrix.arrange(table)
    if layout is None:
        return []
    parts = [
        "<h3>Technique matrix</h3>",
        '<p class="quiet">Blue is better than the baseline, orange worse, full colour from a '
        "factor of 2; * the machine was disturbed.</p>",
        _drawing(matrix.draw(layout)),
    ]
    if measured(table.rows):
        parts += [
            "<h3>Step time against memory</h3>",
            '<p class="quiet">Lower left is better; nothing beats the points on the front in '
            "both.</p>",
            _drawing(front.draw(layout)),
        ]
    return parts


def _drawing(figure: go.Figure) -> str:
    text: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        default_height="auto",
        config={"displayModeBar": False},
    )
    return text
