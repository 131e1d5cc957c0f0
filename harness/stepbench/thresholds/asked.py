"""Where a test wants its claims judged: what the marker says, and whether this is such a place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from stepbench.errors import StepbenchError
from stepbench.records.machine import device_type

KEYWORDS = ("workload", "machine", "torch", "results", "ranks")


class Elsewhere(Exception):
    """The claims are of another machine or torch than this; both are named in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `@pytest.mark.stepbench(...)` says; None: whatever there is.

    Attributes:
        workload: its spelling; None: the default of the machine.
        machine: `cpu`, `cuda`, a GPU's name or a word of it (`H100`), or a machine's name.
        torch: a version specifier, as in a requirement: `>=2.12`.
        results: folder of stored records, or one run's file; None: measure now.
        ranks: of what is data-parallel.
    """

    workload: str | None = None
    machine: str | None = None
    torch: str | None = None
    results: str | None = None
    ranks: int = 1

    @classmethod
    def of(cls, markers: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> Asked:
        """From the arguments of a test's markers, the outermost first: an inner one prevails.

        Raises:
            StepbenchError: an unknown keyword, a value that is no text, or no version specifier.
        """
        said: dict[str, Any] = {}
        for positional, named in markers:
            wrong = [*map(repr, positional), *(key for key in named if key not in KEYWORDS)]
            if wrong:
                raise StepbenchError(
                    f"the marker stepbench does not know {', '.join(wrong)}; it takes "
                    f"{', '.join(f'{key}=' for key in KEYWORDS)}"
                )
            said |= named
        ranks = said.get("ranks", 1)
        if type(ranks) is not int or ranks < 1:
            raise StepbenchError(f"the marker stepbench has ranks={ranks!r}: a number from 1 on")
        for key, value in said.items():
            if key != "ranks" and (not isinstance(value, str) or not value):
                raise StepbenchError(f"the marker stepbench has {key}={value!r}: it must be text")
        asked = cls(**said)
        asked._torch_versions()
        return asked

    def fits_machine(self, machine: Mapping[str, Any]) -> bool:
        """Whether that is the machine, or of the kind, that is asked for."""
        wanted = self.machine
        if wanted is None or wanted in (device_type(machine), machine["name"]):
            return True
        if wanted in ("cpu", "cuda"):
            return False
        # Whole words: A10 is not A100.
        words = re.compile(rf"(?<![a-z0-9]){re.escape(wanted.lower())}(?![a-z0-9])")
        return any(words.search(gpu["name"].lower()) for gpu in machine["gpus"])

    def fits_torch(self, version: str) -> bool:
        """Whether that version of torch is one that is asked for; its build (`+cpu`) is free."""
        return self._torch_versions().contains(version, prereleases=True)

    def require(self, machine: Mapping[str, Any], torch: str) -> None:
        """Raise Elsewhere unless machine and torch are what is asked for."""
        if not self.fits_machine(machine):
            raise Elsewhere(f"asks for the machine {self.machine}; this is {named(machine)}")
        if not self.fits_torch(torch):
            raise Elsewhere(f"asks for torch {self.torch}; this is torch {torch}")

    def _torch_versions(self) -> SpecifierSet:
        try:
            return SpecifierSet(self.torch or "")
        except InvalidSpecifier:
            raise StepbenchError(
                f"the marker stepbench has torch={self.torch!r}: write it as in a requirement, "
                "'>=2.12' or '==2.13.*'"
            ) from None


def named(machine: Mapping[str, Any]) -> str:
    """A machine and its kind, for who asked for another: `amd-epyc-2-cores (cpu)`."""
    return f"{machine['name']} ({device_type(machine)})"
