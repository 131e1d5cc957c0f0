"""Measure on a host that has Python and torch, no network and little time; pack what to bring home.

    python3 harness/stepbench/selfcheck/bare_host.py --wheels .whl --minutes 9

Prints the card, its limits and clocks, and walks the list of `host_steps.py`. What a step has
measured is packed into one archive after it and while it runs, so that nothing is lost where
the call is cut off. Unpacked in the repository, the archive is also what the next call goes on
from, on a host that starts from nothing. `-- ARGUMENTS` measures one `stepbench run` instead of the
list. Standard library only: what stepbench needs beside torch is installed from a folder of wheels.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file, its own folder is on the path instead
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from stepbench.selfcheck.host_steps import RUN, STEPS, Step

# The modules that the steps import, and the distributions they come in.
NEEDED = {
    "torch": "torch",
    "click": "click",
    "numpy": "numpy",
    "packaging": "packaging",
    "psutil": "psutil",
    "pynvml": "nvidia-ml-py",
    "rich": "rich",
    "scipy": "scipy",
    "tabulate": "tabulate",
}
TIME_RAN_OUT, TOOK_TOO_LONG = 3, 124
ROOT = Path(__file__).resolve().parents[3]
# With less time left than this, nothing is worth starting.
LEAST_S = 15.0
PACK_EVERY_S = 15.0
# A driver that has fallen over lets it wait for ever.
NVIDIA_SMI_S = 30.0
# A step that is interrupted takes back the case that it is at.
WITHDRAW_S = 10.0
SHOWN_LINES = 60
PR_SET_PDEATHSIG = 1
# How a run's file begins the line of a case that is being measured.
BEGUN = b'{"kind": "begin"'
GPU_LINES = re.compile(
    r"Product Name|Driver Version|CUDA Version|Power Limit|Power Draw|MIG Mode|Clocks|"
    r"^\s+(Graphics|SM|Memory|Video) +: .*MHz|Slowdown +: Active"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where this call measures and packs.

    Attributes:
        folder: of the logs and of the journal of steps, a folder for each kind of machine.
        until_s: when the call ends, by `time.monotonic`.
    """

    environ: dict[str, str]
    has_gpu: bool
    results: Path
    folder: Path
    archive: Path
    commit: str | None
    until_s: float

    @property
    def left_s(self) -> float:
        return self.until_s - time.monotonic()

    def command(self, step: Step, seconds: float) -> list[str]:
        return step.command(
            has_gpu=self.has_gpu, results=self.results, commit=self.commit, seconds=seconds
        )

    def note(self, step: Step, exit_code: int, seconds: float) -> None:
        """Write into the journal how a step ended."""
        line = {"step": step.name, "exit_code": exit_code, "seconds": round(seconds, 1)}
        with open(self.folder / "steps.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def ended(self) -> dict[str, int]:
        """The exit codes of the steps that have ended, in this call or in one before."""
        journal = self.folder / "steps.jsonl"
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
        codes = {one["step"]: one["exit_code"] for one in map(json.loads, lines)}
        return {name: code for name, code in codes.items() if code != TIME_RAN_OUT}


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Walk the list, pack, and say how to go on; the exit code."""
    chosen = _parser().parse_args(arguments)
    names = {step.name for step in steps}
    if unknown := [name for name in chosen.again if name not in names]:
        print(
            f"stepbench: --again {unknown[0]}: there are {', '.join(sorted(names))}",
            file=sys.stderr,
        )
        return 2
    until_s = time.monotonic() + 60 * chosen.minutes
    signal.signal(signal.SIGTERM, _stop)
    site = ROOT / ".asv" / "site"
    if chosen.wheels:
        _install(chosen.wheels, site)
    environ = _environ(site)
    sys.path.insert(0, str(site))
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        print(
            f"stepbench: this host lacks {', '.join(missing)}; put their wheels into a folder "
            "(pip download -d wheels …, on a host with a network) and name it with --wheels",
            file=sys.stderr,
        )
        return 2
    gpu = _gpu()
    machine = _machine(environ)
    if machine is None:
        return 1
    host = Host(
        environ=environ,
        has_gpu=bool(machine["gpus"]),
        results=chosen.results,
        folder=chosen.results / "bare-host" / machine["name"],
        archive=chosen.pack,
        commit=chosen.commit,
        until_s=until_s,
    )
    host.folder.mkdir(parents=True, exist_ok=True)
    (host.folder / "nvidia-smi.log").write_text(gpu, encoding="utf-8")
    if chosen.run:  # not one of the list: it is run however often it is asked for
        own = RUN + shlex.join(chosen.run)
        steps = [Step(name="run", gpu=own, cpu=own, limit_s=60 * chosen.minutes)]
        chosen.again = ["run"]
    exit_code = _walk(host, steps, chosen.again)
    print(f"packed {host.archive}; unpack it in the repository: tar -xzf {host.archive.name}")
    return exit_code


def _environ(site: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "harness"), str(site))),
        "PYTHONUNBUFFERED": "1",  # a log holds what a step that is killed has printed
    }


def _walk(host: Host, steps: Sequence[Step], again: Sequence[str]) -> int:
    """Run in order, while there is time, what has not ended yet or is named in `again`."""
    _pack(host.results, host.archive)
    ended = host.ended()
    for step in steps:
        if step.name in ended and step.name not in again:
            continue
        if host.left_s < LEAST_S:
            return TIME_RAN_OUT
        ended[step.name] = _run(host, step)
    for step in steps:
        print(f"{step.name}: exit code {ended[step.name]}")
    codes = {ended[step.name] for step in steps}
    return TIME_RAN_OUT if TIME_RAN_OUT in codes else int(codes != {0})


def _run(host: Host, step: Step) -> int:
    """Run a step to its end or limit, and pack; its exit code, 3 where it is to be gone on with."""
    limit_s = min(step.limit_s, host.left_s)
    command = host.command(step, limit_s)
    print(f"\n== {step.name}: python {shlex.join(command)}", flush=True)
    log = host.folder / f"{step.name}.log"
    began_s, code = time.monotonic(), TIME_RAN_OUT
    with open(log, "ab") as out:
        begins = out.tell()
        process = subprocess.Popen(
            [sys.executable, *command],
            env=host.environ,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_interrupted_with_parent,  # noqa: PLW1509 (this script has one thread)
        )
    try:
        told = _wait(process, limit_s, lambda: _pack(host.results, host.archive))
        cut_off = TOOK_TOO_LONG if limit_s == step.limit_s else TIME_RAN_OUT
        code = cut_off if told is None else told
    finally:  # stopped by a signal, too
        _interrupt(process)
        host.note(step, code, time.monotonic() - began_s)
        _pack(host.results, host.archive)
        written = log.read_bytes()[begins:].decode(errors="replace").splitlines()
        print("\n".join([*written[-SHOWN_LINES:], f"== {step.name}: exit code {code}"]), flush=True)
    return code


def _wait(
    process: subprocess.Popen[bytes], seconds: float, meanwhile: Callable[[], None]
) -> int | None:
    """The exit code of a process, or None where it takes longer; `meanwhile` is called at times."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        try:
            return process.wait(min(PACK_EVERY_S, left_s))
        except subprocess.TimeoutExpired:
            meanwhile()
    return None


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """End a process that has not, so that it can still take back what it is at."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(WITHDRAW_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _interrupted_with_parent() -> None:
    """Between fork and exec: have this process interrupted when its parent dies, however."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _stop(number: int, frame: Any) -> None:
    sys.exit(TIME_RAN_OUT)


def _gpu() -> str:
    """What `nvidia-smi -q` says, its card, limits and clocks printed."""
    command = ["nvidia-smi", "-q"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_S
        )
    except OSError:
        print("nvidia-smi is not here")
        return ""
    except subprocess.TimeoutExpired:
        print(f"nvidia-smi gave no answer in {NVIDIA_SMI_S:g} s")
        return ""
    told = done.stdout + done.stderr
    print("\n".join(line for line in told.splitlines() if GPU_LINES.search(line)) or told)
    return told


def _machine(environ: dict[str, str]) -> dict[str, Any] | None:
    """The machine as records describe it; None, and why is printed, where it cannot be."""
    command = [sys.executable, "-m", "stepbench", "machine", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        return None
    return dict(json.loads(done.stdout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 harness/stepbench/selfcheck/bare_host.py",
        description="Measure on a host without a network, in limited time, and pack the results.",
        epilog="Exit codes: 0 every step ended with 0; 1 one did not (its log says why; `--again` "
        "repeats it); 2 a mistake, told in one line; 3 time ran out, start again.",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="end after so long")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--commit", help="what is measured, where there is no repository to ask")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--pack", type=Path, default=Path("stepbench-results.tar.gz"))
    parser.add_argument("--again", nargs="+", default=[], metavar="STEP", help="steps to repeat")
    parser.add_argument("run", nargs="*", help="after --: arguments of one `stepbench run` instead")
    return parser


def _install(wheels: Path, site: Path) -> None:
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"stepbench: {wheels}: no wheels there")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", str(site), *files], check=True)


def _pack(results: Path, archive: Path) -> None:
    """Pack runs, pairs, logs and journals; whole, or the archive stays as it was."""
    made = archive.with_name(f"{archive.name}.new")
    with tarfile.open(made, "w:gz") as packed:
        for path in sorted({*results.rglob("*.jsonl"), *results.rglob("bare-host/*/*.log")}):
            try:
                content, mtime = path.read_bytes(), int(path.stat().st_mtime)
            except FileNotFoundError:  # a run that could not be begun takes its file back
                continue
            if path.suffix == ".jsonl":
                content = _settled(content)
            member = tarfile.TarInfo(str(Path("results") / path.relative_to(results)))
            member.size, member.mtime = len(content), mtime
            packed.addfile(member, io.BytesIO(content))
    made.replace(archive)


def _settled(lines: bytes) -> bytes:
    """Lines without a last one that is being written, or that says that a case has begun.

    Where the archive is gone on from, that case is measured and has not died.
    """
    whole = lines[: lines.rfind(b"\n") + 1]
    last = b"".join(whole.splitlines(keepends=True)[-1:])
    return whole.removesuffix(last) if last.startswith(BEGUN) else whole


if __name__ == "__main__":
    sys.exit(main())
