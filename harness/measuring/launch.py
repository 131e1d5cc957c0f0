"""Fresh processes: fork, wait with a deadline, kill the whole group, say how it ended.

This process must only have imported: it never runs an operator nor asks torch about CUDA, so a
forked child finds torch loaded and its devices untouched. The imports below are what a worker would
otherwise pay about a second for.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch._dynamo
import torch.profiler
import torch.utils.checkpoint
import torch.utils.flop_counter  # noqa: F401

PR_SET_PDEATHSIG = 1
# A workload's module may ask at import whether there is CUDA: let torch answer that by NVML, which
# leaves this process able to fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended: with an `answer` (decoded JSON), or the `death` that kept it from one.

    `wall_s` is from before the fork until the child was reaped.
    """

    answer: Any
    death: str | None
    wall_s: float


def in_child(work: Callable[..., Any], *arguments: Any, deadline_s: float) -> Ended:
    """Run `work(*arguments)` in a forked child, in a session of its own.

    Its return value must be JSON. The child and everything it started are killed at the deadline,
    when this process dies, and when this call is interrupted.
    """
    context = get_context("fork")
    began = time.perf_counter()
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryFile() as log:
        child = context.Process(
            target=_child, args=(work, arguments, theirs, log.fileno(), os.getpid()), daemon=False
        )
        child.start()
        theirs.close()
        try:
            told = _await(ours, child.pid, deadline_s)
        finally:
            _kill_group(child)
            ours.close()
        if told is None:
            told = {"answer": None, "error": _how_it_died(child.exitcode or 0) + _last_words(log)}
    return Ended(answer=told["answer"], death=told["error"], wall_s=time.perf_counter() - began)


def _await(
    ours: connection.Connection, pid: int | None, deadline_s: float
) -> dict[str, Any] | None:
    """What the child told, or the deadline it missed; None where it vanished without a word.

    Its death is watched for itself: a grandchild that lives on keeps the pipe open.
    """
    assert pid is not None
    alive = os.pidfd_open(pid)
    try:
        if not connection.wait([ours, alive], deadline_s):
            late = f"no answer within its deadline of {deadline_s:g} s; it was killed"
            return {"answer": None, "error": late}
        return dict(json.loads(ours.recv_bytes())) if ours.poll() else None
    except (EOFError, OSError):
        return None
    finally:
        os.close(alive)


def _child(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    theirs: connection.Connection,
    log: int,
    parent: int,
) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # died before the signal was asked for
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What was imported is never garbage: collecting it would cost a quarter of the worker's time.
    gc.freeze()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["KINETO_LOG_LEVEL"] = "99"
    try:
        told = {"answer": work(*arguments), "error": None}
    except BaseException as error:
        told = {"answer": None, "error": one_line(error)}
    theirs.send_bytes(json.dumps(told).encode())
    # Nothing of torch's teardown is worth its time in a process that has told all it knows.
    os._exit(0)


def _kill_group(child: Any) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()  # before it had made its session, the group did not exist
    child.join()


def one_line(error: BaseException) -> str:
    """An exception's type, first line and place, for an outcome's reason."""
    words = next(iter(str(error).strip().splitlines()), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words}{place}"


def _how_it_died(exit_code: int) -> str:
    if exit_code < 0:
        return f"the process was killed by {signal.Signals(-exit_code).name}"
    return f"the process ended with exit code {exit_code} and no answer"


def _last_words(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f" (its last line: {lines[-1][:200]})" if lines else ""
