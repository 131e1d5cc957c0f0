"""What asv.conf.json and ASV's machine files must hold: ASV itself looks at none of it.

It fails with a traceback where it meets a wrong kind, and ignores what is misspelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asv import util
from asv.config import Config
from asv.machine import Machine, MachineCollection

from stepbench.errors import StepbenchError

# Of what kind each key must be that this project or its guide sets; ASV has more of them.
TEXTS = (
    "project",
    "repo",
    "environment_type",
    "launch_method",
    "benchmark_dir",
    "results_dir",
    "env_dir",
    "html_dir",
    "workload_file",
)
LISTS = ("branches", "plugins", "on_request")
NUMBERS = ("default_benchmark_timeout",)
KNOWN = {*vars(Config()), *TEXTS, *LISTS, "build_cache_size", "wheel_cache_size", "version"}


def load(path: Path) -> Config:
    """The configuration in a file.

    Raises:
        StepbenchError: it is no JSON, or a key is unknown or of the wrong kind.
    """
    if not path.is_file():
        raise StepbenchError(f"{path} does not exist; run this in the project's top folder")
    try:
        conf = Config.load(str(path))
    except Exception as error:  # json5 and ASV raise what they like
        raise StepbenchError(f"{path} cannot be read: {_one_line(error)}") from error
    require(conf, str(path))
    return conf


def require(conf: Any, where: str = "asv.conf.json") -> None:
    """StepbenchError naming the first key that is unknown or of the wrong kind."""
    keys: Mapping[str, Any] = vars(conf)
    if unknown := sorted(set(keys) - KNOWN):
        raise StepbenchError(f"{where}: no key is called {unknown[0]!r}; see `stepbench init`")
    for names, right, rule in (
        (TEXTS, _is_text, "must be text"),
        (LISTS, _is_list, "must be a list of texts"),
        (NUMBERS, _is_positive, "must be a number above 0"),
        (("regressions_thresholds",), _are_thresholds, "must give a number for each pattern"),
    ):
        for name in names:
            if name in keys and not right(keys[name]):
                raise StepbenchError(f"{where}: {name} {rule}, not {str(keys[name])[:40]!r}")


def require_machines(results: Path) -> None:
    """StepbenchError naming the first machine.json below a results folder that ASV cannot use."""
    for path in sorted(results.glob("*/machine.json")):
        try:
            machine = util.load_json(str(path), Machine.api_version)
            right = all(isinstance(value, str) for value in machine.values())
            named = machine["machine"] == path.parent.name
        except Exception as error:  # a file may hold anything
            raise _unusable(path, _one_line(error)) from error
        if not right or not named:
            raise _unusable(path, "it must hold texts, and its folder's name as `machine`")


def save_machine(name: str, entry: Mapping[str, str]) -> None:
    """Have ASV save a machine's entry in its own file; StepbenchError where that is damaged."""
    try:
        MachineCollection.save(name, entry)
    except Exception as error:  # it may hold anything
        where = Path(MachineCollection.get_machine_file_path())
        raise _unusable(where, _one_line(error)) from error


@contextmanager
def told_by_asv() -> Iterator[None]:
    """Have ASV tell a mistake as one of its own: one line, no traceback."""
    try:
        yield
    except StepbenchError as error:
        raise util.UserError(str(error)) from error


def _unusable(path: Path, why: str) -> StepbenchError:
    return StepbenchError(f"{path}: {why}; move it away, `asv run` writes it anew")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _are_thresholds(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(_is_pattern(name) and _is_positive(one) for name, one in value.items())


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
