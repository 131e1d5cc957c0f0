"""What is measured: a workload under a combination of techniques, on a number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stepbench.records.jsonable import Jsonable


@dataclass(frozen=True, slots=True)
class Combination(Jsonable):
    """At most one technique an axis, baselines dropped: equal sets are equal, `{}` is `baseline`.

    `training.techniques.combine` makes them from names, in the order of spelling.
    """

    techniques: Mapping[str, str] = field(default_factory=dict)  # {axis: technique}

    def __str__(self) -> str:
        return "+".join(self.techniques.values()) or "baseline"

    def __hash__(self) -> int:
        return hash(frozenset(self.techniques.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Jsonable):
    """A workload (its canonical spelling) under a combination on a number of ranks.

    `batch_factor` is how many of the workload's global batches make one of the case's: 1 splits
    the same batch over the ranks (strong scaling), `ranks` grows it with them (weak scaling).
    """

    workload: str
    combination: Combination = Combination()
    ranks: int = 1
    batch_factor: int = 1

    def __str__(self) -> str:
        return f"{self.workload} {self.chosen}"

    @property
    def chosen(self) -> str:
        """All but the workload: `ddp on 2 ranks, global batch x2`."""
        return f"{self.combination}{self.spread}"

    @property
    def spread(self) -> str:
        """The ranks and the batch, each where it is not 1: ` on 2 ranks, global batch x2`."""
        ranks = f" on {self.ranks} ranks" if self.ranks > 1 else ""
        grown = f", global batch x{self.batch_factor}" if self.batch_factor > 1 else ""
        return f"{ranks}{grown}"

    @property
    def baseline(self) -> Case:
        """The same workload, nothing chosen, one rank."""
        return Case(workload=self.workload)
