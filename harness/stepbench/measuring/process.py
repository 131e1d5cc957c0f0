"""How a measuring process is controlled: fork, deadline, kill of the group, answer or death.

The process that forks must only have imported: it never runs an operator nor asks torch about CUDA,
so that a forked child finds torch loaded and its devices untouched. The imports of torch below are
what a worker would otherwise pay about a second for.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch._dynamo
import torch.profiler
import torch.utils.checkpoint
import torch.utils.flop_counter

import stepbench
from stepbench.measuring.probes.run_delay import sound
from stepbench.records.jsonable import Jsonable
from stepbench.server import die_with, last_line, log_into, read_log

# When one of a group has ended badly, another that ended worse is known within this: sockets of a
# process that dies are closed before its death can be seen.
GRACE_S = 1.0
# A hanging process writes where it stands within this.
STACK_S = 0.5
# A workload's module may ask at import whether there is CUDA: let torch answer that by NVML, which
# leaves this process able to fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

Task = tuple[Any, ...]  # a function and its arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Jsonable):
    """How a child ended: with an `answer` (decoded JSON), or the `death` that kept it from one.

    `wall_s` is from before the fork until it was known to have ended. `traceback` is that of the
    exception that ended it; `stack` is where it stood, innermost call first, if it was killed here:
    at its deadline, or because another of its group ended badly.
    """

    answer: Any
    death: str | None
    wall_s: float
    traceback: str | None = None
    stack: tuple[str, ...] | None = None


def in_child(work: Callable[..., Any], *arguments: Any, deadline_s: float) -> Ended:
    """Run `work(*arguments)` in a forked child, in a session of its own.

    Its return value must be JSON. The child and everything it started are killed at the deadline,
    when this process dies, and when this call is interrupted.
    """
    return in_children([(work, *arguments)], deadline_s=deadline_s)[0]


def in_children(
    tasks: Sequence[Task],
    *,
    deadline_s: float,
    bad: Callable[[Any], bool] = lambda answer: False,
    meanwhile: Callable[[], None] = lambda: None,
    every_s: float = 3600.0,
) -> list[Ended]:
    """The same for several children at once; how each ended, in order.

    When one dies, raises, or gives an answer that is `bad`, the others have `GRACE_S` left. One
    that has told its end stays until all have: ranks must not see each other leave. `meanwhile` is
    called every so many seconds.
    """
    sound()  # probed once here, not in every child
    children: list[_Child] = []
    until = time.monotonic() + deadline_s
    try:
        children.extend(_Child(task, stays=len(tasks) > 1) for task in tasks)
        while waiting := [child for child in children if child.told is None]:
            handles = [handle for child in waiting for handle in child.handles]
            left_s = until - time.monotonic()
            if not connection.wait(handles, max(0.0, min(every_s, left_s))):
                if left_s <= every_s:
                    break
                meanwhile()
            for child in waiting:
                child.listen()
                if child.told and (child.told["error"] or bad(child.told["answer"])):
                    until = min(until, time.monotonic() + GRACE_S)
        _ask_where_they_stand(waiting)
    finally:
        for child in children:
            child.kill()
    return [child.ended(deadline_s) for child in children]


class _Child:
    """A forked process, the pipe that it answers through, and its log."""

    def __init__(self, task: Task, *, stays: bool) -> None:
        self.began, self.wall_s = time.perf_counter(), 0.0
        self.told: dict[str, Any] | None = None
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.pipe, theirs = connection.Pipe(duplex=False)
        self.process = get_context("fork").Process(
            target=_child, args=(task, theirs, self.log.fileno(), os.getpid(), stays)
        )
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.alive = os.pidfd_open(self.process.pid)

    @property
    def handles(self) -> tuple[Any, Any]:
        """Ready when it has told something, and when it has ended.

        Its death is watched for itself: a grandchild that lives on keeps the pipe open.
        """
        return self.pipe, self.alive

    def listen(self) -> None:
        """Take what it has told, if anything; what vanished without a word has told its death."""
        ended = connection.wait([self.alive], 0)
        with suppress(EOFError, OSError):
            if self.pipe.poll():
                self.told = json.loads(self.pipe.recv_bytes())
        if self.told is None and ended:
            self.process.join()
            words = _how_it_died(self.process.exitcode or 0) + _last_words(read_log(self.log))
            self.told = {"answer": None, "error": words}
        if self.told is not None:
            self.wall_s = time.perf_counter() - self.began

    def kill(self) -> None:
        """End it with everything that it started, and reap it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # before it had made its session, the group did not exist
        self.process.join()
        self.wall_s = self.wall_s or time.perf_counter() - self.began
        self.pipe.close()
        os.close(self.alive)

    def ended(self, deadline_s: float) -> Ended:
        """What is known of its end, once it was killed."""
        told, stack = self.told, None
        if told is None:
            stack = _stack(read_log(self.log))
            late = f"no answer within its deadline of {deadline_s:g} s; it was killed"
            told = {"answer": None, "error": late + (f" in {stack[0]}" if stack else "")}
        self.log.close()
        return Ended(
            answer=told["answer"],
            death=told["error"],
            wall_s=self.wall_s,
            traceback=told.get("traceback"),
            stack=stack,
        )


def _ask_where_they_stand(children: Sequence[_Child]) -> None:
    for child in children:
        os.kill(child.process.pid or 0, signal.SIGUSR1)
    if children:
        time.sleep(STACK_S)


def _child(task: Task, theirs: connection.Connection, log: int, parent: int, stays: bool) -> None:
    work, *arguments = task
    os.setsid()
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What was imported is never garbage: collecting it would cost a quarter of the worker's time.
    gc.freeze()
    log_into(log)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=False)
    os.environ["KINETO_LOG_LEVEL"] = "99"
    told: dict[str, Any]
    try:
        told = {"answer": work(*arguments), "error": None}
    except BaseException as error:
        told = {"answer": None, "error": one_line(error), "traceback": brief_traceback(error)}
    theirs.send_bytes(json.dumps(told).encode())
    while stays:
        signal.pause()
    # Nothing of torch's teardown is worth its time in a process that has told all it knows.
    os._exit(0)


def one_line(error: BaseException) -> str:
    """An exception's type, first line and place, for an outcome's reason."""
    words = next(iter(str(error).strip().splitlines()), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words}{place}"


def brief_traceback(error: BaseException) -> str:
    """A traceback whose files have their names only: folders would name the machine's user."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(one.filename).name}:{one.lineno} {one.name}: {one.line}" for one in frames]
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])


def _how_it_died(exit_code: int) -> str:
    if exit_code < 0:
        return f"the process was killed by {signal.Signals(-exit_code).name}"
    return f"the process ended with exit code {exit_code} and no answer"


def _last_words(log: str) -> str:
    line = last_line(log)
    return f" (its last line: {line})" if line else ""


def _stack(log: str) -> tuple[str, ...]:
    """What faulthandler wrote last: `function (file:line)`, innermost call first."""
    written = log.rpartition("(most recent call first):")[2]
    frames = re.findall(r'File "(.*?)", line (\d+) in (.*)', written)
    return tuple(f"{function} ({_in_package(file)}:{line})" for file, line, function in frames)


def _in_package(file: str) -> str:
    """A file's path below where torch or this package is installed; else its name."""
    for package in (torch, stepbench):
        root = Path(package.__file__ or "").parents[1]
        if Path(file).is_relative_to(root / package.__name__):
            return str(Path(file).relative_to(root))
    return Path(file).name
