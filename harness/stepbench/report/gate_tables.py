"""The gate's verdicts for a terminal, for a pull request in Markdown, as JSON and as JUnit XML."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from tabulate import tabulate

from stepbench.comparable import not_comparable
from stepbench.records import machine
from stepbench.records.pair import INTERLEAVED, WHOLE, Figure, Method
from stepbench.records.verdict import CaseVerdict, Difference, Gate, Pin, TimeVerdict, label
from stepbench.report import formats

HEADERS = ("case", "verdict", "without a clock", "time", "pairs")
PAIRED: dict[Method, str] = {
    INTERLEAVED: "interleaved pairs",
    WHOLE: "pairs of whole processes",
}
FIGURES: dict[Figure, str] = {
    "cpu_quartile": "CPU time of the quieter steps",
    "cpu_total": "CPU time",
    "wall_total": "wall time",
    "wall_median": "median step time",
}
LEGEND = (
    "without a clock: counts exactly, bytes, loss and gradient norm beyond what they differed by "
    "among a side's own processes; of counts and bytes less is better, another loss fails where "
    "rounding does not explain it.",
    "time: by pairs of fresh processes, candidate over reference; a regression showed in 20 pairs "
    "(exact Wilcoxon p <= 0.005, estimate at least the minimum effect) and again in 12 fresh ones "
    "(p <= 0.05). suspect: the fresh ones did not show it. "
    "seen: what 9 of 10 such gates would have found.",
)
WORST_FIRST = ("worse", "beyond tolerance", "changed", "better")
FEW_BYTES = 10_000  # shown as they are
MANY = "p values are adjusted for {} cases: false discovery rate, Benjamini-Hochberg."
COUNTERS_ONLY = "Time was not compared."


def terminal(gate: Gate) -> str:
    """For a terminal; no control character from a record reaches it."""
    return _text(gate, "simple", formats.plain, newline="\n", bullet="")


def markdown(gate: Gate) -> str:
    """For a pull request; nothing in a record acts as markup."""
    return _text(gate, "pipe", formats.markdown, newline="  \n", bullet="- ")


def as_json(gate: Gate) -> dict[str, Any]:
    """All that was measured, and beside each pair its log-ratios."""
    told = gate.to_json()
    for case, shown in zip(gate.cases, told["cases"], strict=True):
        shown["verdict"] = case.verdict
        for one, pair in zip(
            case.time.pairs if case.time else (),
            shown["time"]["pairs"] if case.time else (),
            strict=True,
        ):
            pair["log_ratios"] = {name: one.pair.log_ratio(name) for name in one.pair.figures}
    return {**told, "exit_code": gate.exit_code}


def junit(gate: Gate) -> str:
    """One test case a case: a regression fails, what gives no number is an error.

    Skipped: what this machine cannot run, and what could not be judged.
    """
    suite = ElementTree.Element("testsuite", name="stepbench gate", timestamp=gate.started_at)
    totals = {"tests": len(gate.cases), "failures": 0, "errors": 0, "skipped": 0}
    for case in gate.cases:
        one = ElementTree.SubElement(
            suite, "testcase", classname="stepbench.gate", name=formats.plain(str(case.case))
        )
        kind = _JUNIT.get(case.verdict)
        details = ("  " * depth + formats.plain(line) for depth, line in _details(case))
        lines = "\n".join([_summary(case), *details])
        if kind:
            tag, total = kind
            totals[total] += 1
            ElementTree.SubElement(one, tag, message=_summary(case)).text = lines
        else:
            ElementTree.SubElement(one, "system-out").text = lines
    suite.attrib.update({name: str(number) for name, number in totals.items()})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


_JUNIT = {
    "regression": ("failure", "failures"),
    "changed": ("failure", "failures"),
    "refused": ("error", "errors"),
    "failed": ("error", "errors"),
    "unsupported": ("skipped", "skipped"),
    "not enough data": ("skipped", "skipped"),
}


def _text(gate: Gate, style: str, clean: Callable[[str], str], *, newline: str, bullet: str) -> str:
    rows = [[clean(cell) for cell in _cells(case)] for case in gate.cases]
    table = tabulate(rows, HEADERS, style, disable_numparse=True)
    details = [
        "\n".join(
            [
                clean(str(case.case)) + ":" + ("\n" if bullet else ""),
                *(f"{'  ' * (depth + (not bullet))}{bullet}{clean(line)}" for depth, line in lines),
            ]
        )
        for case in gate.cases
        if (lines := _details(case))
    ]
    captions = newline.join(map(clean, _captions(gate)))
    legend = newline.join(map(clean, _legend(gate)))
    return "\n\n".join([captions, table, *details, legend])


def _captions(gate: Gate) -> list[str]:
    return [
        f"{gate.candidate} against {gate.reference}: {conclusion(gate)}",
        f"{machine.summary(gate.machine)}, torch {gate.torch}, ruler {gate.measure_version}, "
        f"{formats.moment(gate.started_at)}",
        *map(_pin, gate.pins),
    ]


def _pin(one: Pin) -> str:
    change = f"{one.old or 'none'} -> {one.new or 'none'} in {one.file}"
    return f"the pin of {one.name} differs and was not applied: {change}"


def conclusion(gate: Gate) -> str:
    """How many cases ended how, the worst first: `1 regression, 3 none`."""
    order = (
        *("regression", "changed", "refused", "failed"),
        *("suspect", "not enough data", "works again"),
    )
    verdicts = [case.verdict for case in gate.cases]
    seen = dict.fromkeys((*(one for one in order if one in verdicts), *verdicts))
    return ", ".join(f"{verdicts.count(one)} {one}" for one in seen) or "no case"


def _legend(gate: Gate) -> list[str]:
    if not gate.timed:
        return [LEGEND[0], COUNTERS_ONLY]
    many = [MANY.format(len(gate.cases))] if len(gate.cases) > 1 else []
    return [*LEGEND, *many]


def _cells(case: CaseVerdict) -> list[str]:
    return [
        str(case.case),
        case.verdict,
        _without_a_clock(case),
        _time(case.time) if case.time else "",
        _pairs(case.time) if case.time else "",
    ]


def _without_a_clock(case: CaseVerdict) -> str:
    if not (case.reference.ok and case.candidate.ok) or case.refused or case.undecided:
        return ""
    worst = sorted(case.differences, key=lambda one: WORST_FIRST.index(one.change))
    return ", ".join(_short(one) + _meant(one, case) for one in worst) or "counters equal"


def _short(one: Difference) -> str:
    name = label(one.figure)
    if one.change == "changed":
        return f"other {name}"
    return f"{name} {one.change if one.unit == 'value' else _by(one)}"


def _meant(one: Difference, case: CaseVerdict) -> str:
    return " (intended)" if one.figure in case.intended else ""


def _by(one: Difference) -> str:
    """`+1,024`, or `-0.25 MiB`."""
    return ("+" if one.new > one.old else "") + _amount(one.new - one.old, one)


def _time(time: TimeVerdict) -> str:
    if time.verdict == "not enough data" or time.estimate is None or time.figure is None:
        return "not judged"
    if time.verdict == "none" and time.smallest_seen is not None:
        return f"none; {_percent(time.smallest_seen)} would have been seen"
    p = f", p {time.p:.2g}" if time.p is not None else ""
    unsure = ", not confirmed" if time.verdict == "suspect" else ""
    return f"{FIGURES[time.figure]} {_percent(time.estimate)}{p}{unsure}"


def _pairs(time: TimeVerdict) -> str:
    if not time.pairs:
        return ""
    disturbed = sum(bool(one.pair.discarded) for one in time.pairs)
    told = f"{len(time.pairs)} {PAIRED[time.method]}"
    return told + (f", {disturbed} disturbed" if disturbed else "")


def _percent(log_ratio: float) -> str:
    """`+4.8%` of a log-ratio."""
    return f"{math.expm1(log_ratio):+.1%}"


def _summary(case: CaseVerdict) -> str:
    """One line: the verdict and what it rests on."""
    outcome = next((str(one) for one in (case.candidate, case.reference) if not one.ok), "")
    time = _time(case.time) if case.time else ""
    parts = (case.refused or "", case.undecided or outcome, _without_a_clock(case), time)
    return formats.plain(f"{case.verdict}: " + "; ".join(part for part in parts if part))


def _details(case: CaseVerdict) -> list[tuple[int, str]]:
    """Why, each line with its depth: outcomes that are not ok, the key that forbids comparing,
    where the figures differ.
    """
    if case.undecided:
        return [(0, f"not judged: {case.undecided}")]
    lines = [
        (0, f"{name}: {outcome}")
        for name, outcome in (("reference", case.reference), ("candidate", case.candidate))
        if not outcome.ok
    ]
    if case.refused:
        lines.append((0, not_comparable(case.refused)))
    for one in case.differences:
        amounts = f"{_amount(one.old, one)} -> {_amount(one.new, one)} ({_by(one)})"
        lines.append((0, f"{label(one.figure)} {one.change}{_meant(one, case)}: {amounts}"))
        lines += [(1, part) for part in one.detail]
    if case.verdict == "suspect":
        differ = {one.figure for one in case.differences}
        equal = [label(one) for one in case.compared if one not in differ]
        lines.append((0, f"equal: {', '.join(equal)}"))
    return lines + [(0, line) for line in (_time_details(case.time) if case.time else [])]


def _time_details(time: TimeVerdict) -> list[str]:
    what = "not judged" if time.verdict == "not enough data" else "not confirmed"
    lines = [f"time was {what}: {time.reason}"] if time.reason else []
    judged = {one.figure for one in time.weighed}
    dropped = sum(bool(one.pair.discarded) for one in time.pairs)
    if dropped:
        alone = "" if "wall_total" in judged or not judged else ", so CPU time alone was judged"
        lines.append(
            f"{dropped} of {len(time.pairs)} pairs were disturbed: wall time dropped{alone}"
        )
    if time.verdict in ("regression", "suspect", "improvement"):
        lines += [
            f"{FIGURES[one.figure]}, {one.pairs} pairs ({one.stage}): {_percent(one.estimate)}, "
            f"p {one.p_faster if time.verdict == 'improvement' else one.p_slower:.2g}"
            for one in time.weighed
            if one.stage != "screen"
        ]
    return lines


def _amount(value: float, one: Difference) -> str:
    if one.unit == "value":
        return f"{value:.9g}"
    if one.unit == "count":
        return f"{value:,}"
    if abs(value) < FEW_BYTES:
        return f"{value:,} bytes"
    return f"{formats.mebibytes(value)} MiB"
