"""How long and how often a case is measured."""

from __future__ import annotations

from dataclasses import dataclass

from stepbench.errors import StepbenchError
from stepbench.records.case import Case
from stepbench.records.jsonable import Jsonable
from stepbench.training.techniques import plan_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Jsonable):
    """Rounds a case, the timed steps of each process, and its threads.

    While disturbed rounds leave fewer than `rounds` quiet ones, more are measured: as many again,
    but at most `extra_rounds`.

    A process times `max_steps` steps, or what fits in `window_s`, but at least `min_steps`. It is
    killed after `deadline_s`, which says how long a case may hang and is not part of a run's
    identity. On a CPU the operators of each rank, of the baseline too, run on `threads` threads.
    """

    rounds: int = 2
    extra_rounds: int = 2
    max_steps: int = 20
    min_steps: int = 5
    window_s: float = 2.0
    threads: int = 1
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 1 <= self.min_steps <= self.max_steps:
            raise StepbenchError(
                f"rounds={self.rounds}, steps {self.min_steps} to {self.max_steps}: there must be "
                "at least 1 round and 1 step, and no more least steps than most"
            )
        if self.threads < 1:
            raise StepbenchError(f"threads={self.threads}: an operator runs on at least 1 thread")

    def threads_of(self, case: Case) -> int:
        """Threads of each of the case's ranks on a CPU: its own choice, or the run's."""
        return plan_of(case.combination).threads or self.threads
