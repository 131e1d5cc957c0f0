"""How often the rule and ASV's were right, from measured pairs and live gates: numbers and text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from asv._stats import is_different
from scipy.stats import binomtest
from tabulate import tabulate

from stepbench.records import machine as machines
from stepbench.records.pair import INTERLEAVED, Block, Figure, Pair
from stepbench.report import formats
from stepbench.stats import rule
from stepbench.stats.rule import PAIRS_A_START, simulate

Condition = Literal["quiet", "crowded"]
CONDITIONS: tuple[Condition, ...] = ("crowded", "quiet")
# Simulated gates of a cell; those of equal trees are drawn from so many resamplings of the starts.
SIMULATED, RESAMPLED = 2_000, 100
# What the docs recommend for a verdict of ASV's: 8 rounds a commit, with their samples.
ASV_ROUNDS, ASV_FACTOR, ASV_DRAWN = 8, 1.1, 2_000
LEAST_PAIRS = 2 * ASV_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Which steps bear a cost: the first `hits` of every `period`. Its total is what is planted."""

    about: str
    period: int
    hits: int


SHAPES = {
    "uniform": Shape(about="every step", period=1, hits=1),
    "periodic": Shape(about="every third step", period=3, hits=1),
    "burst": Shape(about="three steps in a row of thirty", period=30, hits=3),
    "one in 20": Shape(about="every twentieth step", period=20, hits=1),
}
# What is planted in measured pairs: of all shapes the 5% that the gate is asked for.
PLANTED = [(0.03, "uniform"), *((0.05, shape) for shape in SHAPES)]


def rounded(pair: Pair) -> dict[str, Any]:
    """A pair as JSON with its raw steps to the microsecond."""

    def short(block: Block) -> Block:
        return Block(
            **{name: tuple(round(s, 6) for s in getattr(block, name)) for name in Block.__slots__}
        )

    reference, candidate = (tuple(map(short, one)) for one in (pair.reference, pair.candidate))
    return replace(pair, reference=reference, candidate=candidate).to_json()


def planted(pair: Pair, share: float, shape: Shape, phase: int) -> Pair:
    """The pair with a candidate whose total cost is larger by a share, in steps of that shape.

    The cost is CPU time, a multiple of the process' mean step; `phase` is the index of the first
    step within a period.
    """
    mean_s = statistics.fmean(s for block in pair.candidate for s in block.cpu_s)
    cost_s = share * mean_s * shape.period / shape.hits
    index, blocks = phase, []
    for block in pair.candidate:
        costs = [
            cost_s * ((index + step) % shape.period < shape.hits)
            for step in range(len(block.step_s))
        ]
        index += len(costs)
        blocks.append(
            replace(
                block,
                step_s=tuple(map(sum, zip(block.step_s, costs, strict=True))),
                cpu_s=tuple(map(sum, zip(block.cpu_s, costs, strict=True))),
            )
        )
    return replace(pair, candidate=tuple(blocks))


def both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs and again with their sides swapped: of equal trees either may be the candidate."""
    swapped = (replace(one, reference=one.candidate, candidate=one.reference) for one in pairs)
    return [*pairs, *swapped]


def log_ratios(pairs: Sequence[Pair]) -> dict[Figure, np.ndarray]:
    """By metric, in the order of the pairs; NaN where one is not judged by it."""
    return {
        figure: np.asarray(
            [math.nan if figure in one.discarded else one.log_ratio(figure) for one in pairs]
        )
        for figure in pairs[0].figures
    }


def found(pairs: Sequence[Pair], share: float, shape: Shape, gates: int = SIMULATED) -> float:
    """The share of simulated gates that call a planted slowdown a regression."""
    rng = np.random.default_rng(0)
    phases = rng.integers(shape.period, size=2 * len(pairs))
    rows = log_ratios(
        [
            planted(one, share, shape, int(phase))
            for one, phase in zip(both_ways(pairs), phases, strict=True)
        ]
    )
    return simulate(rows, minimum=MINIMUM, gates=gates).get("regression", 0) / gates


def false_alarms(pairs: Sequence[Pair], gates: int = SIMULATED) -> tuple[float, float]:
    """Of simulated gates of equal trees, the share called a regression; its 95% upper bound.

    The bound is over resamplings of the starts: how few there are is in it.
    """
    rows = log_ratios(both_ways(pairs))
    rate = _called(rows, 10 * gates, seed=0)
    rng = np.random.default_rng(1)
    starts = len(pairs) // PAIRS_A_START
    rates = []
    for seed in range(RESAMPLED):
        chosen = rng.integers(starts, size=starts)
        pairs_of = (PAIRS_A_START * chosen[:, None] + np.arange(PAIRS_A_START)).ravel()
        both = np.concatenate([pairs_of, pairs_of + len(pairs)])
        rates.append(_called({name: row[both] for name, row in rows.items()}, gates // 4, seed))
    drawn = 10 * gates
    upper = binomtest(round(rate * drawn), drawn).proportion_ci(0.95, method="exact").high
    return rate, max(float(np.quantile(rates, 0.95)), float(upper))


def _called(rows: Mapping[Figure, np.ndarray], gates: int, seed: int) -> float:
    return simulate(rows, minimum=MINIMUM, gates=gates, seed=seed).get("regression", 0) / gates


# Planted and equal trees alike differ in no counter.
MINIMUM = math.log1p(rule.UNEXPLAINED_EFFECT[INTERLEAVED])


def asv_rate(pairs: Sequence[Pair], share: float) -> float:
    """Of comparisons by ASV's rule, the share that call a candidate slower by `share` slower.

    ASV compares independent processes of one commit after those of the other: here those of the
    references of successive pairs, and then those of the candidates of the pairs after them.
    """
    old, new = (
        [statistics.median(s for block in side for s in block.step_s) for side in sides]
        for sides in ([one.reference for one in pairs], [one.candidate for one in pairs])
    )
    rng = np.random.default_rng(0)
    called = 0
    for start in rng.integers(len(pairs) - LEAST_PAIRS + 1, size=ASV_DRAWN):
        middle = start + ASV_ROUNDS
        first = old[start:middle]
        then = [(1 + share) * one for one in new[middle : middle + ASV_ROUNDS]]
        slower = statistics.median(first) < statistics.median(then) / ASV_FACTOR
        called += bool(slower and is_different(first, then, {}, {}))
    return called / ASV_DRAWN


def rate(many: int, of: int) -> str:
    """`3.0% [1.2, 6.1]`: a share with its 95% Clopper-Pearson interval."""
    low, high = binomtest(many, of).proportion_ci(0.95, method="exact")
    return f"{many / of:.1%} [{low:.1%}, {high:.1%}]"


Lines = Sequence[Mapping[str, Any]]


def report(machine: Mapping[str, Any], torch: str, lines: Lines, gates: Lines) -> str:
    """The whole of it in Markdown."""
    times = sorted(one["at"] for one in (*lines, *gates))
    shapes = "; ".join(f"{name}: {shape.about}" for name, shape in SHAPES.items())
    return f"""# How often the gate is wrong

{machines.summary(machine)}, torch {torch}, {formats.moment(times[0])} to
{formats.moment(times[-1])}.
`stepbench selfcheck gate` measures and writes this page. The machine was crowded where others kept
a quarter of a processor or more busy meanwhile, and quiet elsewhere. A planted slowdown is a loop
that takes a share of the CPU time of the step before; x% is its part of the total, whatever steps
it falls on ({shapes}).

## Live

Whole gates of one case between two commits, each side with its own interpreters:

{live(gates)}

## The rule on measured pairs

{len(lines)} pairs of equal trees, measured with their raw steps in starts of two. *False alarms*:
gates that call equal trees a regression, either side being the candidate, with a 95% upper bound
that holds for how few starts there are. *Found*: gates that call a slowdown a regression, added to
the raw steps of one side. Each number is from {SIMULATED:,} simulated gates or more, which run
the state machine of a real gate on starts that are drawn again and again.

{simulated(lines)}

## ASV's rule on the same processes

`asv compare`: Mann-Whitney p < 0.002 on {ASV_ROUNDS} + {ASV_ROUNDS} processes, one commit's
measured after the other's, and the median slower by a factor of {ASV_FACTOR}.

{by_asv(lines)}
"""


def live(gates: Lines) -> str:
    """Live gates by what was planted: how they ended."""
    rows = []
    for percent, shape, condition in dict.fromkeys(
        (one["percent"], one["shape"], one["condition"]) for one in gates
    ):
        kind = {"percent": percent, "shape": shape, "condition": condition}
        ended = [one for one in gates if kind.items() <= one.items()]
        verdicts = [one["verdict"] for one in ended]
        rows.append(
            {
                "planted": f"{percent}% {shape}" if percent else "nothing",
                "machine": condition,
                "gates": len(ended),
                "regression": rate(verdicts.count("regression"), len(ended)),
                **{
                    verdict: verdicts.count(verdict)
                    for verdict in ("suspect", "none", "improvement", "not enough data")
                },
                "pairs": sum(one["pairs"] for one in ended),
            }
        )
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def _cells(lines: Lines, row: Callable[[list[Pair]], Mapping[str, str]]) -> str:
    """A table with a row for each workload and condition."""
    rows = []
    for workload, condition in sorted({(one["workload"], one["condition"]) for one in lines}):
        pairs = [
            Pair.from_json(one["pair"])
            for one in lines
            if (one["workload"], one["condition"]) == (workload, condition)
        ]
        rows.append({"workload": workload, "machine": condition, **row(pairs)})
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def simulated(lines: Lines) -> str:
    """What the rule makes of the measured pairs, by workload and condition."""

    def row(pairs: list[Pair]) -> Mapping[str, str]:
        step_s = statistics.median(s for one in pairs for b in one.reference for s in b.cpu_s)
        spreads = [np.nanstd(values, ddof=1) for values in log_ratios(pairs).values()]
        alarms, bound = false_alarms(pairs)
        return {
            "pairs": str(len(pairs)),
            "step ms": formats.milliseconds(step_s),
            "others' cores": f"{statistics.fmean(one.foreign_cores for one in pairs):.1f}",
            "spread of a pair": " / ".join(f"{spread:.1%}" for spread in spreads),
            "false alarms": f"{alarms:.2%} (at most {bound:.2%})",
            **{
                f"{share:.0%} {shape}": f"{found(pairs, share, SHAPES[shape]):.0%}"
                for share, shape in PLANTED
            },
        }

    return _cells(lines, row)


def by_asv(lines: Lines) -> str:
    """How often ASV's rule calls the candidate slower."""
    return _cells(
        lines,
        lambda pairs: {
            "equal trees": f"{asv_rate(pairs, 0.0):.1%}",
            "5% uniform": f"{asv_rate(pairs, 0.05):.1%}",
        },
    )
