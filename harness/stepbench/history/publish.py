"""The dashboard: what `asv publish` writes, made to work offline, with our own page beside it.

ASV's stock page loads ten files from CDNs; asv-tachyon shows the same data from files of its own.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.resources import as_file, files
from itertools import groupby
from pathlib import Path
from typing import Any

from asv.console import log
from asv.publishing import OutputPublisher

from stepbench.errors import StepbenchError
from stepbench.history import configuration
from stepbench.metrics.catalogue import COUNTS
from stepbench.report import page
from stepbench.store import read_all

# Benchmarks of what repeats exactly.
COUNTED = re.compile(rf"measure_({'|'.join(COUNTS)})$")
# Over the lower right corner, where the dashboard has nothing.
LINK = """<a href="techniques/{page}" style="position: fixed; right: 1em; bottom: 1em; z-index: 9;
padding: 0.5em 1em; border-radius: 2em; background: #0b57d0; color: #fff; text-decoration: none;
font: 600 14px system-ui, sans-serif;">Techniques</a>
"""


class Techniques(OutputPublisher):  # type: ignore[misc]
    """Our page from our records, and asv-tachyon over ASV's own page."""

    name = "techniques"
    button_label = "Techniques"
    description = "What each training technique buys, from the records"

    @classmethod
    def publish(cls, conf: Any, repo: Any, benchmarks: Any, graphs: Any, revisions: Any) -> None:
        runs, problems = read_all(Path(conf.results_dir))
        for problem in problems:
            log.warning(problem)
        html = Path(conf.html_dir)
        positions = repo.get_revisions({one.run.commit for one in runs})
        written = page.write(runs, html / cls.name, positions)
        with as_file(files("asv_tachyon") / "static") as static:
            shutil.copytree(static, html, dirs_exist_ok=True)
        index = html / "index.html"
        shell = index.read_text(encoding="utf-8")
        link = LINK.format(page=written.name)
        index.write_text(shell.replace("</body>", f"{link}</body>"), encoding="utf-8")


def exact(detect_steps: Callable[..., None]) -> Callable[..., None]:
    """ASV's step detection, but every change of a count is a step, at the commit that made it.

    ASV's own is for noise: it takes one operator more in a thousand for a part of its neighbours'.
    """

    @wraps(detect_steps)
    def detect(graph: Any, pool: Any = None) -> None:
        if not COUNTED.search(graph.path) or graph._steps is not None:
            return detect_steps(graph, pool)
        data = graph.get_data()
        columns = [[row[1]] if graph.scalar_series else row[1] for row in data]
        graph._steps = [
            _runs([(row[0], column[index]) for row, column in zip(data, columns, strict=True)])
            for index in range(graph.n_series)
        ]
        return None

    return detect


def _runs(series: Iterable[tuple[int, float | None]]) -> list[tuple[int, int, float, float, float]]:
    """Equal values in a row as ASV has its steps: from, up to, value, least, deviation."""
    known = [(at, value) for at, value in series if value is not None and not math.isnan(value)]
    steps = []
    for value, each in groupby(known, key=lambda one: one[1]):
        revisions = [at for at, _ in each]
        steps.append((revisions[0], revisions[-1] + 1, value, value, 0.0))
    return steps


def publish(project: Path) -> Path:
    """Run `asv publish` for the project's asv.conf.json and return the dashboard's folder.

    Raises:
        StepbenchError: no configuration or a wrong one, a damaged machine file, or ASV failed; with
            ASV's last line.
    """
    config = project / "asv.conf.json"
    conf = configuration.load(config)
    configuration.require_machines(project / conf.results_dir)
    command = [sys.executable, "-m", "asv", "publish", "--config", str(config.resolve())]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).strip().splitlines()
        raise StepbenchError(f"asv publish failed: {lines[-1] if lines else 'it said nothing'}")
    return project / str(conf.html_dir)
