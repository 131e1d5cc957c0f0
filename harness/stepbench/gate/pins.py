"""What a source tree says of the libraries it needs: nothing of it is installed for a side."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from stepbench.records.verdict import Pin

FILES = ("requirements*.txt", "requirements/*.txt")
# A library by the file that names it, and in which group of extras.
Pins = Mapping[tuple[str, str], str]


def read(*folders: Path) -> Pins:
    """The pins in requirements files and pyproject.toml of some folders; the later one's count."""
    found: dict[tuple[str, str], list[str]] = {}
    for folder in folders:
        for where, line in _lines(folder):
            with suppress(InvalidRequirement):  # an option, another file, a comment
                one = Requirement(line)
                told = str(one.specifier) or one.url or "any version"
                marker = f" where {one.marker}" if one.marker else ""
                found.setdefault((where, canonicalize_name(one.name)), []).append(told + marker)
    return {key: ", ".join(dict.fromkeys(pins)) for key, pins in found.items()}


def changed(old: Pins, new: Pins) -> tuple[Pin, ...]:
    """Those that are not the same in both."""
    return tuple(
        Pin(name=key[1], file=key[0], old=old.get(key), new=new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    """Requirements as they are written, each with the file it stands in."""
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
        for line in text.splitlines():
            # Hashes and comments of pip's own format, which `Requirement` does not know.
            yield path.relative_to(folder).as_posix(), line.partition(" #")[0].partition(" --")[0]
    path = folder / "pyproject.toml"
    if path.is_file():
        with suppress(tomllib.TOMLDecodeError, UnicodeDecodeError):
            told = tomllib.loads(path.read_text(encoding="utf-8"))
            for group, lines in _groups(told):
                for line in lines:
                    yield f"pyproject.toml{group}", line


def _groups(told: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str]]]:
    project = told.get("project", {})
    yield "", project.get("dependencies", [])
    for table in (project.get("optional-dependencies", {}), told.get("dependency-groups", {})):
        for name, lines in table.items():
            yield f" [{name}]", [line for line in lines if isinstance(line, str)]
