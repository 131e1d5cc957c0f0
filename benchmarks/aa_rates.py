"""How often the rule and ASV's were right, from measured pairs and live gates: numbers and text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from asv._stats import is_different
from scipy.stats import binomtest
from tabulate import tabulate

from harness import machine as machines
from harness.judging import rule
from harness.judging.rule import simulate
from harness.report import formats
from harness.verdicts import Figure, Pair

SIMULATED = 10_000
# What the docs recommend for a verdict of ASV's: 8 rounds a commit, with their samples.
ASV_ROUNDS = 8
LEAST_PAIRS = 2 * ASV_ROUNDS
ASV_FACTORS = (1.1, 1.01)
ASV_DRAWN = 2_000


def rule_rates(
    pairs: Sequence[Pair], figures: Sequence[Figure], gates: int = SIMULATED
) -> dict[str, int]:
    """Verdicts of simulated gates that judge the pairs by these figures."""
    floor = math.log1p(rule.FLOORS["ping-pong"])
    rows = {figure: [pair.log_ratio(figure) for pair in pairs] for figure in figures}
    return simulate(rows, floor=floor, gates=gates)


def asv_rates(lines: Sequence[Mapping[str, Any]], factor: float, *, in_turn: bool) -> int:
    """Of `ASV_DRAWN` comparisons by ASV's rule, how many call the candidate slower.

    ASV compares independent processes, so many of each commit: here those of successive pairs,
    either of the same ones (`in_turn`) or first one commit's and then the other's, as ASV runs.
    """
    rng = np.random.default_rng(0)
    span = ASV_ROUNDS if in_turn else LEAST_PAIRS
    found = 0
    for start in rng.integers(len(lines) - span + 1, size=ASV_DRAWN):
        later = start if in_turn else start + ASV_ROUNDS
        old = [one["median_step_s"]["reference"] for one in lines[start : start + ASV_ROUNDS]]
        new = [one["median_step_s"]["candidate"] for one in lines[later : later + ASV_ROUNDS]]
        slower = float(np.median(old)) < float(np.median(new)) / factor
        found += slower and is_different(old, new, {}, {})
    return found


def rate(found: int, of: int) -> str:
    """`3.0% [1.2, 6.1]`: a share with its 95% Clopper-Pearson interval."""
    low, high = binomtest(found, of).proportion_ci(0.95, method="exact")
    return f"{found / of:.2%} [{low:.2%}, {high:.2%}]"


def report(
    machine: Mapping[str, Any],
    torch: str,
    lines: Sequence[Mapping[str, Any]],
    gates: Sequence[Mapping[str, Any]],
) -> str:
    """The whole of it in Markdown."""
    times = sorted(one["at"] for one in (*lines, *gates))
    return "\n".join(
        [
            "# How often the gate is wrong",
            "",
            f"{machines.summary(machine)}, torch {torch}, {formats.moment(times[0])} to "
            f"{formats.moment(times[-1])}.",
            "gpt-tiny; a slowdown of x% is a loop that takes x% of the step before's CPU time.",
            "`make aa` measures and writes this page.",
            "",
            "## Live",
            "",
            "Whole gates of one case between two commits, each with its own interpreters:",
            "",
            live(gates),
            "",
            "## The rule on measured pairs",
            "",
            f"{len(lines)} pairs measured, and the rule run {SIMULATED:,} times over pairs drawn "
            "again and again from those of an effect. CPU time: the Hodges-Lehmann estimate of "
            "what was planted; spread: standard deviation of a pair. In brackets: 95% "
            "Clopper-Pearson intervals of the draws; how few pairs they came from is not in "
            "them. A gate drops the wall time of disturbed pairs: on a quiet machine it judges the "
            "undisturbed ones by both figures, on a crowded one all of them by CPU time.",
            "",
            simulated(lines),
            "",
            "## ASV's rule on the same processes",
            "",
            f"`asv compare`: Mann-Whitney p < 0.002 on {ASV_ROUNDS} + {ASV_ROUNDS} processes, and "
            "the median slower by a factor (1.1 unless `--factor` says otherwise). ASV measures "
            "one commit after the other; in turn would be kinder to it. "
            f"{ASV_DRAWN:,} draws of successive processes:",
            "",
            by_asv(lines),
            "",
        ]
    )


def live(gates: Sequence[Mapping[str, Any]]) -> str:
    """Live gates by planted effect: how they ended."""
    rows = []
    for percent in sorted({one["percent"] for one in gates}):
        ended = [one for one in gates if one["percent"] == percent]
        verdicts = [one["verdict"] for one in ended]
        pairs = sum(one["pairs"] for one in ended)
        rows.append(
            {
                "planted": f"{percent}%",
                "gates": len(ended),
                "called a regression": f"{verdicts.count('regression')}: "
                + rate(verdicts.count("regression"), len(ended)),
                "suspect": verdicts.count("suspect"),
                "none": verdicts.count("none"),
                "improvement": verdicts.count("improvement"),
                "not enough data": verdicts.count("not enough data"),
                "pairs": pairs,
                "disturbed": f"{sum(one['disturbed'] for one in ended) / pairs:.0%}",
            }
        )
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def simulated(lines: Sequence[Mapping[str, Any]]) -> str:
    """The rule's verdicts and ASV's, by planted effect."""
    rows = []
    for percent in sorted({one["percent"] for one in lines}):
        of_it = [one for one in lines if one["percent"] == percent]
        pairs = [Pair.from_json(one["pair"]) for one in of_it]
        cpu = [pair.log_ratio("cpu_s") for pair in pairs]
        quiet = rule_rates([one for one in pairs if not one.disturbances], ("cpu_s", "step_s"))
        crowded = rule_rates(pairs, ("cpu_s",))
        row = {
            "planted": f"{percent}%",
            "pairs": len(pairs),
            "disturbed": f"{sum(bool(pair.disturbances) for pair in pairs) / len(pairs):.0%}",
            "CPU time": f"{math.expm1(rule.hodges_lehmann(cpu)):+.1%}",
            "spread": f"{np.std(cpu, ddof=1):.1%}",
            "undisturbed: regression": rate(quiet["regression"], SIMULATED),
            "suspect": f"{quiet['suspect'] / SIMULATED:.2%}",
            "improvement": f"{quiet['improvement'] / SIMULATED:.2%}",
            "all, by CPU time: regression": rate(crowded["regression"], SIMULATED),
            "suspect ": f"{crowded['suspect'] / SIMULATED:.2%}",
            "improvement ": f"{crowded['improvement'] / SIMULATED:.2%}",
        }
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def by_asv(lines: Sequence[Mapping[str, Any]]) -> str:
    """How often ASV's rule calls the candidate slower, by planted effect."""
    rows = []
    for percent in sorted({one["percent"] for one in lines}):
        of_it = [one for one in lines if one["percent"] == percent]
        row = {"planted": f"{percent}%"}
        for factor in ASV_FACTORS:
            for in_turn, name in ((False, "one after the other"), (True, "in turn")):
                found = asv_rates(of_it, factor, in_turn=in_turn)
                row[f"factor {factor}, {name}"] = rate(found, ASV_DRAWN)
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
