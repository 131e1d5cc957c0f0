"""The dashboard: what `asv publish` writes, made to work offline, with our own page beside it.

ASV's stock page loads ten files from CDNs; asv-tachyon shows the same data from files of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from asv.console import log
from asv.publishing import OutputPublisher

from harness.core import StepbenchError
from harness.history import configuration
from harness.report import page
from harness.store import read_all

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
        written = page.write(runs, html / cls.name)
        with as_file(files("asv_tachyon") / "static") as static:
            shutil.copytree(static, html, dirs_exist_ok=True)
        index = html / "index.html"
        shell = index.read_text(encoding="utf-8")
        link = LINK.format(page=written.name)
        index.write_text(shell.replace("</body>", f"{link}</body>"), encoding="utf-8")


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
