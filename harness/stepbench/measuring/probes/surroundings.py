"""What else the host did while a window was timed: load by others, and time stolen from it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from stepbench.stats.noise import DELAYED_SHARE, STOLEN_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """Counters of the host's processors at one moment, seconds since boot."""

    at_s: float
    busy_s: float
    stolen_s: float
    own_s: float

    @classmethod
    def read(cls, processes: Iterable[int]) -> HostLoad:
        """Now. `own_s` is of the case's `processes` on this host and of their children, loader
        workers among them."""
        host = psutil.cpu_times()
        idle = host.idle + getattr(host, "iowait", 0.0)
        stolen = getattr(host, "steal", 0.0)
        # guest time is contained in user time already
        guest = getattr(host, "guest", 0.0) + getattr(host, "guest_nice", 0.0)
        return cls(
            at_s=time.monotonic(),
            busy_s=sum(host) - idle - stolen - guest,
            stolen_s=stolen,
            own_s=sum(map(_with_children_s, processes)),
        )

    def shares(self, later: HostLoad) -> tuple[float, float]:
        """Of the time between two readings, in cores: what was stolen, and what others used."""
        wall_s = max(later.at_s - self.at_s, 1e-9)
        foreign_s = later.busy_s - self.busy_s - later.own_s + self.own_s
        return (later.stolen_s - self.stolen_s) / wall_s, foreign_s / wall_s

    def disturbances(
        self, later: HostLoad, tolerated: float, delay_s: float = 0.0
    ) -> tuple[str, ...]:
        """What disturbed the time between two readings, one line each.

        `tolerated` is how many processors others may have kept busy, `delay_s` how long the case
        waited for one.
        """
        stolen, foreign = self.shares(later)
        told = []
        if stolen > STOLEN_SHARE:
            told.append("the hypervisor took processor time")
        if foreign > tolerated:
            told.append("other processes kept processors busy")
        elif delay_s > DELAYED_SHARE * (later.at_s - self.at_s):
            told.append("the process waited for a processor")
        return tuple(told)


def _with_children_s(pid: int) -> float:
    total_s = 0.0
    with suppress(psutil.NoSuchProcess):
        this = psutil.Process(pid)
        for process in (this, *this.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                # User and system time of itself and of the children it has waited for.
                total_s += sum(process.cpu_times()[:4])
    return total_s
