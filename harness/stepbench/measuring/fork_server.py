"""A process that has only imported one side's code, and forks every fresh process of that side.

Two source trees cannot be imported by one interpreter, so each side has a fork server: for the code
of this process a fork of it, for a tree an interpreter of its own with that tree first on its path.
A tree of Stepbench brings its own package and thereby its own measurement version; another
project's brings its workload, and is measured by this package.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from multiprocessing import connection, reduction
from pathlib import Path
from typing import Any, Literal

import stepbench
from stepbench.comparable import difference, not_comparable, version_difference
from stepbench.errors import StepbenchError
from stepbench.measuring.caches import cold_caches
from stepbench.measuring.measure import Stopped, measure_process
from stepbench.measuring.paired_worker import time_blocks
from stepbench.measuring.preload import preload
from stepbench.measuring.process import Ended, in_child, one_line
from stepbench.measuring.settings import Settings
from stepbench.measuring.sources import PROJECT_TREE, mixed_module
from stepbench.measuring.window_plan import WindowPlan
from stepbench.records.case import Case
from stepbench.records.outcome import Outcome
from stepbench.server import Server, ServerDied, Start, forked, interpreter, serve, served
from stepbench.source_roots import import_roots
from stepbench.training.techniques import imports
from stepbench.training.workloads import load
from stepbench.versions import MEASURE_VERSION

# What parent and fork server say to each other, which a tree's own package must say alike. Names
# in messages (`ruler`, `play`) stay what they are, or the version changes.
PROTOCOL = 2
# Importing torch from a cold disk is a matter of many seconds.
START_S = 180.0
Work = Literal["measure", "play"]


class ForkServer(Server):
    """The parent's handle on one source tree's fork server; a context that leaves no process.

    Made, it starts; entered, it has imported. One fresh process at a time: `begin` starts it,
    `ended` waits for its end.

    Raises:
        StepbenchError: the tree's code does not start, or has another measurement version.
    """

    def __init__(self, tree: str | None, machine: Mapping[str, Any]) -> None:
        self.tree = tree
        self._machine = dict(machine)
        super().__init__(forked(_serve) if tree is None else _interpreter(Path(tree)))

    def __enter__(self) -> ForkServer:
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(
        self,
        work: Work,
        case: Case,
        settings: Settings,
        channel: int | None = None,
        plan: WindowPlan | None = None,
    ) -> None:
        """Start a case's fresh process: `measure` by a plan, or `play` on the socket `channel`."""
        request = {
            "work": work,
            "case": case.to_json(),
            "settings": settings.to_json(),
            "machine": self._machine,
            "plan": plan.to_json() if plan else None,
        }
        self.send(request, channel)

    def ended(self, timeout_s: float) -> Ended:
        """How the process ended; where the fork server vanished, that is the death."""
        try:
            return Ended.from_json(self.receive(timeout_s))
        except TimeoutError:
            return Ended(answer=None, death=f"no end within {timeout_s:g} s", wall_s=timeout_s)
        except ServerDied as died:
            return Ended(answer=None, death=f"its fork server died{died}", wall_s=0.0)

    def _greet(self) -> None:
        where = f"the code of {self.tree or 'this process'}"
        try:
            hello = self.receive(START_S)
        except TimeoutError:
            raise StepbenchError(f"{where} was not imported within {START_S:g} s") from None
        except ServerDied as died:
            raise StepbenchError(f"{where} does not start{died}") from None
        if hello["lacks"]:
            raise StepbenchError(f"{where} does not start: it lacks {hello['lacks']}")
        differing = version_difference(hello["ruler"], where) or difference(
            hello, {"protocol": PROTOCOL}, ("protocol",)
        )
        if differing:
            remedy = "measure both sides with packages of one version"
            raise StepbenchError(not_comparable(differing, remedy))


def _interpreter(tree: Path) -> Start:
    """This interpreter on the tree's code, then on this package for what the tree lacks."""
    here = str(Path(stepbench.__file__ or "").resolve().parents[1])
    path = [*import_roots(tree), here, os.environ.get("PYTHONPATH", "")]
    return interpreter(__name__, path, folder=tree, environ={PROJECT_TREE: str(tree)})


def main() -> None:
    """The fork server of a tree, in an interpreter of its own."""
    _serve(*served())


def _serve(descriptor: int, parent: int) -> None:
    hello = {"ruler": MEASURE_VERSION, "protocol": PROTOCOL, "lacks": mixed_module()}
    serve(
        lambda control, request: _answered(control, request).to_json(),
        descriptor,
        parent,
        hello=hello,
    )


def _answered(control: connection.Connection, request: Mapping[str, Any]) -> Ended:
    """How a fresh process of a case ended, or why there could be none."""
    case, settings = Case.from_json(request["case"]), Settings.from_json(request["settings"])
    channel = reduction.recv_handle(control) if request["work"] == "play" else None
    began = time.perf_counter()
    try:
        load(case.workload)  # imported here, so that no fresh process pays for it
        if channel is None:
            plan = WindowPlan.from_json(request["plan"]) if request["plan"] else None
            measurement = measure_process(case, settings, request["machine"], plan)
            answer = {"measurement": measurement.to_json()}
            return Ended(answer=answer, death=None, wall_s=time.perf_counter() - began)
        preload(imports(case.combination))
        with cold_caches():
            return in_child(
                time_blocks,
                channel,
                request["case"],
                settings,
                request["machine"],
                deadline_s=settings.deadline_s,
            )
    except Stopped as stopped:
        outcome = stopped.outcome
    except StepbenchError as error:
        outcome = Outcome(kind="failed", reason=str(error))
    except Exception as error:
        outcome = Outcome(kind="failed", reason=one_line(error))
    finally:
        if channel is not None:
            os.close(channel)
    answer = {"outcome": outcome.to_json()}
    return Ended(answer=answer, death=None, wall_s=time.perf_counter() - began)
