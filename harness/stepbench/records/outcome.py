"""How a case ended, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepbench.records.jsonable import Jsonable

# Characters: two lines of a terminal.
LONGEST_REASON = 200

OutcomeKind = Literal["ok", "oom", "unsupported", "invalid", "failed"]
Phase = Literal["build", "data", "forward", "backward", "update", "warm-up", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Jsonable):
    """How a case ended. `reason` is one line and always there unless the case is `ok`.

    The reason of an `ok` case says what its number does not mean. `traceback` is that of the error,
    outermost call first, where there was one. A reason of more than two lines of a terminal is cut,
    and stands as a whole at the traceback's end.
    """

    kind: OutcomeKind
    reason: str | None = None
    phase: Phase | None = None
    traceback: str | None = None

    def __post_init__(self) -> None:
        if self.reason is None or len(self.reason) <= LONGEST_REASON:
            return
        whole = "\n".join(filter(None, (self.traceback, self.reason)))
        object.__setattr__(self, "traceback", whole)
        object.__setattr__(self, "reason", f"{self.reason[: LONGEST_REASON - 2]} …")

    @property
    def ok(self) -> bool:
        return self.kind == "ok"

    def __str__(self) -> str:
        where = f" in {self.phase}" if self.phase else ""
        return f"{self.kind}{where}" + (f": {self.reason}" if self.reason else "")
