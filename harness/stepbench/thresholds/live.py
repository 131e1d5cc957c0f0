"""Claims judged from what this machine measures now, beside the baseline.

Time is measured in pairs, in stages: a claim that the first pairs cannot settle is given more. Each
stage may err in up to 2.2% of tests on a side, all of them together in 4.1%, where a technique is
exactly at its floor; the further from it, the less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from stepbench.records.case import Case
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record
from stepbench.stats.noise import most_measured, one_more
from stepbench.thresholds.floors import Speeds
from stepbench.thresholds.measurer import Measurer
from stepbench.versions import MEASURE_VERSION

# Undisturbed pairs when a stage ends; 6 are the fewest with an interval, the last is the cap.
STAGES = (6, 12, 20)


class Live:
    """This machine, measured when a claim asks for it; a case once, whatever is claimed of it.

    On a GPU host it takes one GPU, until the measurer is closed.
    """

    machine: Mapping[str, Any]

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer
        self.machine = measurer.ask("machine")
        self.torch = version("torch")
        self._records: dict[Case, Record] = {}
        self._pairs: dict[Case, list[Mapping[str, Any]]] = {}

    def record(self, case: Case) -> Record:
        """One round, for memory, counters, and whether it works at all."""
        if case not in self._records:
            answer = self._measurer.ask("record", case.to_json())
            self._records[case] = Record.from_json(answer)
        return self._records[case]

    def speeds(self, case: Case) -> Speeds:
        """One ratio an undisturbed pair of those measured so far."""
        pairs = self._pairs.get(case, [])
        calm = tuple(pair["speed"] for pair in pairs if not pair["disturbances"])
        return Speeds(ratios=calm, disturbed=len(pairs) - len(calm), called="pair")

    def measure_more(self, case: Case) -> bool:
        """Measure what the next stage lacks; False after the last, or among too much noise."""
        pairs = self._pairs.setdefault(case, [])
        quiet = len(self.speeds(case).ratios)
        stage = next((wanted for wanted in STAGES if wanted > quiet), None)
        if stage is None or not one_more(quiet, len(pairs), stage):
            return False
        missing = min(stage - quiet, most_measured(stage) - len(pairs))
        answer = self._measurer.ask("pairs", self.record(case).to_json(), len(pairs), missing)
        pairs += answer["pairs"]
        if answer["outcome"] is not None:
            outcome = Outcome.from_json(answer["outcome"])
            self._records[case] = replace(self.record(case), outcome=outcome)
        return True

    def provenance(self, case: Case) -> str:
        """That it was measured now, with what."""
        return f"measured now beside its baseline, torch {self.torch}, ruler {MEASURE_VERSION}"
