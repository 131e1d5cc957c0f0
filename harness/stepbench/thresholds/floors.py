"""Floors: whether what a test claims of a combination holds.

A claim about time is judged by the interval of paired ratios, never by one number: it holds where
the whole interval is on its side, fails where the whole interval is on the other, and else cannot
be told. Bytes and counts repeat, so they are judged by all the values that were measured, one
being enough; what disturbs the clock does not touch them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tabulate import tabulate

from stepbench.metrics.metric import Paired
from stepbench.records.case import Case
from stepbench.records.machine import summary
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record
from stepbench.stats import measures
from stepbench.thresholds.asserted import Claim, Kind


class Unjudged(Exception):
    """There is nothing to judge a claim from; one line says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Speed ratios of the case to its baseline, one an undisturbed pair of processes.

    `disturbed` counts the pairs that were left out; `called` is what the source calls a pair.
    """

    ratios: tuple[float, ...]
    disturbed: int
    called: Literal["pair", "round"]

    def __str__(self) -> str:
        many = len(self.ratios) + self.disturbed
        left_out = f", {self.disturbed} disturbed left out" if self.disturbed else ""
        return _number(many, self.called) + left_out


class Source(Protocol):
    """Where the figures of a test's claims come from. `machine` is a `machine.describe`."""

    machine: Mapping[str, Any]

    def record(self, case: Case) -> Record:
        """The case beside its baseline; Unjudged where there is none."""

    def speeds(self, case: Case) -> Speeds:
        """What is there to judge its speed by."""

    def measure_more(self, case: Case) -> bool:
        """Add to `speeds`; False where there is nothing to add."""

    def provenance(self, case: Case) -> str:
        """One line: when and by what this case was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a claim stands. `figures` and `taken_from` are empty where there is no number."""

    claim: Claim
    kind: Kind
    figures: str = ""
    taken_from: str = ""
    reason: str = ""

    def __str__(self) -> str:
        claim = self.claim
        told = f"{claim.combination} {claim.name}"
        if self.figures:
            told += f" {self.figures} over {self.taken_from}"
        told += f", claimed {claim.bounds}"
        return f"{told}: {self.reason}" if self.reason else told


def judge(claim: Claim, case: Case, source: Source) -> Verdict:
    """Judge one claim; a case without a number fails, or is `unsupported`, with its reason.

    A claim about time that cannot be told is given more pairs, while the source has any.
    """
    try:
        while True:
            record = source.record(case)
            if not record.outcome.ok:
                return _without_number(claim, record.outcome)
            if not isinstance(claim.metric.gate, Paired):
                return _by_all_rounds(claim, record)
            verdict = _by_interval(claim, source.speeds(case))
            if verdict.kind != "inconclusive" or not source.measure_more(case):
                return verdict
    except Unjudged as nothing:
        return Verdict(claim=claim, kind="inconclusive", reason=str(nothing))


def _without_number(claim: Claim, outcome: Outcome) -> Verdict:
    if outcome.kind == "unsupported":
        return Verdict(claim=claim, kind="unsupported", reason=outcome.reason or "")
    return Verdict(claim=claim, kind="fails", reason=str(outcome))


def _by_all_rounds(claim: Claim, record: Record) -> Verdict:
    values = [claim.of(one) for one in record.rounds]
    kind = claim.judged(min(values), max(values))
    return Verdict(
        claim=claim,
        kind=kind,
        figures=_figures(values, claim.unit),
        taken_from=_number(len(values), "round"),
        reason="the rounds lie on both sides" if kind == "inconclusive" else "",
    )


def _by_interval(claim: Claim, speeds: Speeds) -> Verdict:
    fewest, there = measures.MINIMUM_ROUNDS_FOR_INTERVAL, len(speeds.ratios)
    if there < fewest:
        undisturbed = "undisturbed " if speeds.disturbed else ""
        of_all = f" of {there + speeds.disturbed}" if speeds.disturbed else ""
        return Verdict(
            claim=claim,
            kind="inconclusive",
            figures=_figures(speeds.ratios, "x") if speeds.ratios else "",
            taken_from=str(speeds),
            reason=f"an interval needs {fewest} {undisturbed}{speeds.called}s, there "
            f"{'is' if there == 1 else 'are'} {there}{of_all}",
        )
    interval = measures.estimate(speeds.ratios)
    assert interval.low is not None
    assert interval.high is not None
    kind = claim.judged(interval.low, interval.high)
    return Verdict(
        claim=claim,
        kind=kind,
        figures=f"{interval.median:.3g}x [{interval.low:.3g}, {interval.high:.3g}]",
        taken_from=str(speeds),
        reason="the interval lies on both sides" if kind == "inconclusive" else "",
    )


def told(verdicts: Sequence[Verdict], workload: str, source: Source, cases: Sequence[Case]) -> str:
    """The figures of all claims as one block, with the machine and where they come from."""
    rows = [
        {
            "combination": one.claim.combination,
            "claim": one.claim.name,
            "measured": one.figures or "nothing",
            "over": one.taken_from,
            "claimed": one.claim.bounds,
            "verdict": one.kind.upper() if one.kind == "fails" else one.kind,
        }
        for one in verdicts
    ]
    reasons = dict.fromkeys(str(one) for one in verdicts if one.reason)
    provenance = dict.fromkeys(source.provenance(case) for case in cases)
    machine = f"{source.machine['name']}: {summary(source.machine)}"
    block = tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)
    return "\n".join([f"{workload} on {machine}", *provenance, "", block, "", *reasons]).rstrip()


def _figures(values: Sequence[float], unit: str) -> str:
    """One number, or `lowest to highest` where the values differ."""
    shown = dict.fromkeys(_number_of(value, unit) for value in (min(values), max(values)))
    return " to ".join(shown)


def _number_of(value: float, unit: str) -> str:
    return f"{value:.3g}{unit}" if unit else f"{value:,g}"


def _number(many: int, called: str) -> str:
    return f"{many} {called}" + ("" if many == 1 else "s")
