"""What users may import: the names in `__all__`, loaded lazily, and no others in the documents."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stepbench
from stepbench.training import types

ROOT = Path(__file__).resolve().parents[1]
STABILITY = ROOT / "docs/stability.md"
IMPORT = re.compile(r"^\s*from (stepbench[\w.]*) import (.+)$", re.MULTILINE)


def imports():
    """(document, module, name) of each import from this package that a document shows."""
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            for module, names in IMPORT.findall(block):
                for name in names.split(","):
                    yield path.name, module, name.strip()


def test_the_documents_import_public_names_only():
    shown = list(imports())
    assert ("README.md", "stepbench", "Workload") in shown
    for document, module, name in shown:
        assert module == "stepbench", (document, module, name)
        assert name in stepbench.__all__, (document, name)


def test_the_public_names_are_those_of_the_promise():
    promised = re.findall(r"^\| `(\w+)` \|", STABILITY.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(promised) == sorted(stepbench.__all__)
    assert set(stepbench.__all__) <= set(dir(stepbench))
    assert stepbench.Workload is types.Workload
    assert all(isinstance(getattr(stepbench, name), type) for name in stepbench.__all__)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'stepbench' has no attribute 'nothing'"):
        stepbench.nothing  # noqa: B018


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, stepbench; before = 'torch' in sys.modules; "
        "from stepbench import Workload; print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
