"""The floors of one run of a test suite: each test's claims, and what the tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.store import RunFile
from stepbench.thresholds.asked import Asked
from stepbench.thresholds.asserted import Floor, Kind
from stepbench.thresholds.floors import Source, judge, told
from stepbench.thresholds.live import Live
from stepbench.thresholds.measurer import Measurer
from stepbench.thresholds.stored import Stored, stored_runs

# What a test's claims come to together: the first of these that any of them came to.
WORST_FIRST: tuple[Kind, ...] = ("fails", "inconclusive", "unsupported", "holds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a test's claims come to: in one line, and with all figures."""

    kind: Kind
    headline: str
    text: str


class Session:
    """Opens sources, and keeps what was read and the one that measures.

    `folder` is where workloads of one's own and relative paths are found; `results` replaces what
    the markers say.
    """

    def __init__(self, *, folder: Path, results: str | None) -> None:
        self._folder, self._results = folder, results
        self._runs: dict[Path, list[RunFile]] = {}
        self._open = ExitStack()

    def floors(self, markers: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> Floors:
        """The floors of a test with these markers, the outermost first.

        Raises:
            StepbenchError: a mistake in the markers, or measuring is impossible.
            Elsewhere, Unjudged: see `Stored` and `Asked.require`.
        """
        asked = Asked.of(markers)
        results = self._results or asked.results
        if results is not None:
            path = self._folder / results
            if path not in self._runs:
                self._runs[path] = stored_runs(path)
            source: Source = Stored(path, self._runs[path], asked)
        else:
            asked.require(self._live.machine, self._live.torch)
            source = self._live
        return Floors(source, partial(self._case, asked, source.machine))

    def close(self) -> None:
        """End the measuring process, if one was started."""
        self._open.close()

    @cached_property
    def _measurer(self) -> Measurer:
        return self._open.enter_context(closing(Measurer(self._folder)))

    @cached_property
    def _live(self) -> Live:
        return Live(self._measurer)

    def _case(self, asked: Asked, machine: Mapping[str, Any], combination: str) -> Case:
        """Read by the measurer: a workload of one's own is not imported where the tests run."""
        return Case.from_json(
            self._measurer.ask("case", asked.workload, combination, asked.ranks, machine)
        )


class Floors:
    """One test's claims, judged when it has made them all."""

    def __init__(self, source: Source, case_of: Callable[[str], Case]) -> None:
        self._source = source
        self._case_of = case_of
        self._floors: list[Floor] = []

    def floor(self, combination: str) -> Floor:
        """Begin claims of a combination, spelled as `bf16+accum4`."""
        if not isinstance(combination, str):
            raise StepbenchError(f"floor({combination!r}): name a combination, as 'bf16+accum4'")
        self._floors.append(Floor(combination))
        return self._floors[-1]

    def judge(self) -> Judgement:
        """Measure or look up what is claimed, and judge all of it.

        Raises:
            StepbenchError: nothing is claimed, or of an unknown technique or workload.
        """
        if not self._floors or not all(floor.claims for floor in self._floors):
            names = [floor.combination for floor in self._floors if not floor.claims] or ["bf16"]
            raise StepbenchError(
                "nothing is claimed; say what must hold, as "
                f"floor({names[0]!r}).speed(at_least=1.5)"
            )
        cases = [(floor, self._case_of(floor.combination)) for floor in self._floors]
        verdicts = [
            judge(claim, case, self._source) for floor, case in cases for claim in floor.claims
        ]
        worst = min(verdicts, key=lambda one: WORST_FIRST.index(one.kind))
        machine = self._source.machine["name"]
        workload = cases[0][1].workload
        block = told(verdicts, workload, self._source, [case for _, case in cases])
        if worst.kind == "holds":
            return Judgement(kind=worst.kind, headline="", text=block)
        headline = f"{worst.kind}: {worst} ({workload} on {machine})"
        return Judgement(kind=worst.kind, headline=headline, text=f"{headline}\n\n{block}")
