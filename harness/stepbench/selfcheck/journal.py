"""Lines of JSON that long measurements of the suite itself are kept in, to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stepbench.comparable import (
    difference,
    machine_difference,
    not_comparable,
    version_difference,
)
from stepbench.errors import StepbenchError
from stepbench.versions import MEASURE_VERSION


def opened(file: Path, machine: Mapping[str, Any], **measured_by: object) -> Path:
    """The file with a header that says what it was measured on, and by what.

    Raises:
        StepbenchError: it was measured on or by something else.
    """
    header = {"torch": torch.__version__, "ruler": MEASURE_VERSION, **measured_by}
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        add(file, {"machine": machine, **header})
    known = json.loads(file.read_text(encoding="utf-8").partition("\n")[0])
    differing = (
        version_difference(known["ruler"], file)
        or machine_difference(known["machine"], machine)
        or difference(known, header, ("torch", *measured_by))
    )
    if differing:
        raise StepbenchError(not_comparable(differing, f"move {file} away first"))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a file but its header; empty where there is none."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def add(file: Path, line: Mapping[str, Any]) -> None:
    """Add one line."""
    with open(file, "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
