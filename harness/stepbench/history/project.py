"""`stepbench init`: what ASV needs to measure the commits of another repository."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from stepbench.errors import StepbenchError

PLACEHOLDER = "train:workload"

CONFIGURATION = """\
{
    "version": 1,
    "project": %s,
    "repo": ".",
    // `asv run` measures what is checked out, on any branch and on none.
    "branches": ["HEAD"],

    // This interpreter, the commit's tree first on its path; the ruler is the installed Stepbench.
    "plugins": [".stepbench.history.plugin"],
    "environment_type": "checkout",
    "launch_method": "forkserver",

    "benchmark_dir": "benchmarks",
    // For commits that lack the workload's file: measure them with today's.
    // "workload_file": "train.py",
    // ASV's results and the records of each measurement, a folder a machine: worth committing.
    "results_dir": "results",
    "env_dir": ".asv/env",
    "html_dir": ".asv/html",

    // The last resort: every measuring process has a deadline of its own, far below.
    "default_benchmark_timeout": 14400,

    // Only step times are noisy; counts repeat exactly, bytes within a little.
    "regressions_thresholds": {
        ".*measure_(flops|operators).*": 1e-9,
        ".*measure_\\\\w+_bytes.*": 0.01
    }
}
"""

PACKAGE = '''\
"""What `asv run` measures: one short file a question; the classes hold only parameters.

They are today's, whichever commit is measured; the workload that they name is the commit's.
"""

from asv_runner.benchmarks import benchmark_types

from stepbench.history import suite

benchmark_types.append(suite.Measured)
'''

TECHNIQUES = '''\
"""What does each training technique buy on our model, and did a commit take it away?"""

from stepbench.history import suite


class Techniques(suite.Cases):
    workload = %s  # module:attribute
    param_names = ["technique"]
    params = [["baseline", "bf16", "accum2", "ckpt1"]]  # `stepbench list` shows what there is
'''


def start(project: Path, workload: str | None) -> list[str]:
    """Write the files for ASV into a repository's top folder, and return their names.

    `workload` is the `module:attribute` that the example measures.

    Raises:
        StepbenchError: no top folder of a repository, something is there already, or the workload
            cannot be loaded; nothing was written.
    """
    _refuse(project)
    if workload is not None:
        _check(workload)
    files = {
        "asv.conf.json": CONFIGURATION % json.dumps(project.resolve().name),
        "benchmarks/__init__.py": PACKAGE,
        "benchmarks/techniques.py": TECHNIQUES % json.dumps(workload or PLACEHOLDER),
    }
    # A folder that hides itself from git, whose own .gitignore is the project's to write.
    if not (project / ".asv").exists():
        files[".asv/.gitignore"] = "*\n"
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def _refuse(project: Path) -> None:
    command = ["git", "-C", str(project), "rev-parse", "--show-toplevel"]
    top = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if not top or Path(top) != project.resolve():
        raise StepbenchError(
            f"{project} is not a repository's top folder; "
            + (f"run this in {top}" if top else "`git init` makes it one")
        )
    for name in ("asv.conf.json", "asv.conf.jsonc", "benchmarks"):
        if (project / name).exists():
            raise StepbenchError(f"{name} exists here already, and nothing is overwritten")
    for name in ("stepbench", "stepbench.py"):
        if (project / name).exists():
            raise StepbenchError(
                f"{name} here would hide Stepbench's package of that name; rename it first"
            )


def _check(workload: str) -> None:
    from stepbench.training.workloads import load

    if ":" not in workload.partition("@")[0]:
        raise StepbenchError(
            f"{workload!r} is no workload of your own: name it as module:attribute"
        )
    load(workload)
