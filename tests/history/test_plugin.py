"""ASV loads the plug-in once, by its package's name, whatever copy a tree holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stepbench.history.project import CONFIGURATION
from stepbench.source_roots import PACKAGE

ROOT = Path(__file__).resolve().parents[2]
# Loads plug-ins as ASV does for a configuration that names them; prints what was loaded.
LOAD = """
import sys
from asv import util
from asv.benchmarks import Benchmarks
from asv.plugin_manager import plugin_manager
found = []
try:
    for name in sys.argv[1:]:
        plugin_manager.import_plugin(name)
        found.append(Benchmarks.discover)
except util.UserError as error:
    sys.exit(str(error))
print(*(n for n in sys.modules if n.endswith("history.plugin")), len(set(found)))
print(sys.modules["stepbench"].__file__)
"""


def named(configuration: str) -> str:
    (name,) = re.findall(r'"plugins": \["(.*)"\]', configuration)
    return str(name)


NAME = named((ROOT / "asv.conf.json").read_text(encoding="utf-8"))


def load(folder: Path, *names: str, code: int = 0) -> str:
    """What ASV's plug-in manager made of the names, in a configuration's folder."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *names],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def copied(folder: Path) -> None:
    """Another copy of the package's ASV side."""
    source = ROOT / PACKAGE
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))


def test_one_name_in_both_configurations() -> None:
    assert NAME == named(CONFIGURATION) == ".stepbench.history.plugin"


def test_a_tree_with_another_copy_loads_the_installed_one_once(tmp_path: Path) -> None:
    copied(tmp_path / PACKAGE)
    loaded, where = load(tmp_path, NAME, NAME).splitlines()
    assert loaded == "stepbench.history.plugin 1"
    assert where == str(ROOT / PACKAGE / "__init__.py")


@pytest.mark.parametrize(
    ("copy", "name", "told"),
    [
        (PACKAGE, ".harness.stepbench.history.plugin", f'the plug-in is called "{NAME}"'),
        ("stepbench", NAME, "stepbench hides the installed Stepbench; rename that folder"),
    ],
)
def test_a_second_copy_is_refused_in_one_line(
    tmp_path: Path, copy: str, name: str, told: str
) -> None:
    copied(tmp_path / copy)
    (line,) = load(tmp_path, name, code=1).splitlines()
    assert told in line
