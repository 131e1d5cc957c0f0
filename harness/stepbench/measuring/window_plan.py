"""Which batches both sides of a round time, and how warm they are before: agreed beforehand.

Batches are counted through the epochs, in their seeded order. The parity steps take the first ones
of the first epoch; what lies between them and the warm-up is skipped without being loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stepbench.measuring.probes.parity import DRIFT_STEPS, SAME_PARAMETER_STEPS
from stepbench.measuring.settings import Settings
from stepbench.records.case import Case
from stepbench.records.jsonable import Jsonable
from stepbench.records.measurement import Measurement
from stepbench.records.run import Round
from stepbench.stats import measures
from stepbench.training.techniques import plan_of
from stepbench.training.techniques.loading import DEFAULT_PREFETCH

PARITY_STEPS = SAME_PARAMETER_STEPS + DRIFT_STEPS
# A warm-up has at least so many steps, and is made longer by as many where it was too short.
WARMUP_FLOOR = 2
# A window that must hold two periods may have so many times the steps that were asked for.
MOST_GROWTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan(Jsonable):
    """What a process times.

    Attributes:
        first_batch: of the window, after a warm-up of `warmup_steps`. One that takes longer takes
            the batches that follow, and the window begins later.
        warmup_steps: steps between the parity steps and the window; at least, unless `agreed`.
        least_steps, most_steps: of the window: as many between as fit in the settings' `window_s`,
            or exactly `most_steps` where they are `agreed`.
        agreed: whether another process has shown how much warm-up is needed and what fits.
    """

    first_batch: int
    warmup_steps: int
    least_steps: int
    most_steps: int
    agreed: bool = False

    def beside(self, other: Measurement) -> WindowPlan:
        """The plan for what is measured beside a process that has followed this one.

        It is as warm, and its window begins with the same batch and is no longer.
        """
        later = other.batches[0] - self.first_batch
        return replace(
            self,
            first_batch=self.first_batch + later,
            warmup_steps=self.warmup_steps + later,
            most_steps=max(self.least_steps, len(other.batches)),
        )

    def following(self, rounds: Sequence[Round], settings: Settings) -> WindowPlan:
        """The plan of the next round, which goes on where the last of these ended.

        Its warm-up is longer where a side was still unsteady, and its window where the same steps
        were slow in two processes: it holds two of their periods, or twice as many steps where
        they did not repeat yet.
        """
        last = rounds[-1]
        sides = (last.case, last.baseline)
        begun = max(one.batches[0] for one in sides)
        warmup = self.warmup_steps + begun - self.first_batch
        if not all(one.steady for one in sides):
            warmup += WARMUP_FLOOR
        steps = max(self.least_steps, min(len(one.batches) for one in sides))
        slow, period = measures.periodicity(rounds)
        wanted = 2 * (period or steps) if slow else steps
        ended = min(one.batches[-1] for one in sides) + 1
        return replace(
            self,
            first_batch=max(ended, PARITY_STEPS + warmup),
            warmup_steps=warmup,
            most_steps=max(steps, min(wanted, MOST_GROWTH * settings.max_steps)),
            agreed=True,
        )


def first_plan(case: Case, settings: Settings) -> WindowPlan:
    """The plan of a case's first process, which finds out what it needs.

    What workers load ahead during the slow first steps is used up before the window, which holds
    each worker twice: they deliver in turn.
    """
    loader = plan_of(case.combination).loader
    workers = int(loader.get("num_workers", 0))
    warmup = workers * int(loader.get("prefetch_factor", DEFAULT_PREFETCH)) + WARMUP_FLOOR
    least = max(settings.min_steps, 2 * workers)
    return WindowPlan(
        first_batch=PARITY_STEPS + warmup,
        warmup_steps=warmup,
        least_steps=least,
        most_steps=max(least, settings.max_steps),
    )


def by_one_plan(
    first: Callable[[WindowPlan], Measurement],
    second: Callable[[WindowPlan], Measurement],
    plan: WindowPlan,
) -> tuple[Measurement, Measurement]:
    """Both processes, which time the same batches equally warm.

    The first one is measured again where the second had to warm up longer.
    """
    one = first(plan)
    plan = plan.beside(one)
    other = second(plan)
    if other.batches[0] > plan.first_batch:
        one = first(replace(plan.beside(other), agreed=True))
    return one, other
