"""GPUs for one sweep: chosen by UUID, and locked until the process that took them ends.

A lock is a `flock` on a file named by the UUID, in a folder that all of this host's processes see
(containers of one host do not share it). The kernel frees it however its holder ends. NVML is
asked, never torch: asking that about CUDA would forbid forking.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pynvml

from stepbench.errors import StepbenchError

VISIBLE = "CUDA_VISIBLE_DEVICES"
# How many GPUs a sweep holds whose command has no argument for it, such as `asv run`.
GPUS = "STEPBENCH_GPUS"
FOLDER = "stepbench-gpus"  # in the host's folder for temporary files


def hold_gpus(count: int) -> bool:
    """Make the first free GPUs, `count` or all that there are, what this process' children see.

    They are held until this process and its forked children end. `CUDA_VISIBLE_DEVICES` limits the
    choice. Nothing is done where there is no GPU, or where this process or one that it descends
    from holds them already.

    Returns:
        Whether what is visible has changed.

    Raises:
        StepbenchError: others hold too many GPUs, or the variable names one ambiguously.
    """
    held: list[str] = []
    holders = {}
    visible = _visible()
    for uuid in visible:
        holder = _lock(uuid)
        if holder in (None, *_ancestors()):
            held.append(uuid)
            if len(held) == count:
                break
        else:
            holders[uuid] = holder
    if len(held) < min(count, len(visible)):
        taken = ", ".join(f"{uuid} by process {holder}" for uuid, holder in holders.items())
        free = f"only {len(held)} GPUs are free, not {count}" if held else "no GPU is free"
        raise StepbenchError(f"{free}: {taken}; wait for a sweep to end")
    if not held:
        return False
    changed = os.environ.get(VISIBLE) != ",".join(held)
    os.environ[VISIBLE] = ",".join(held)
    return changed


def _visible() -> list[str]:
    """UUIDs of the GPUs that `CUDA_VISIBLE_DEVICES` leaves, in its order, as CUDA reads it."""
    gpus = _gpus()
    wanted = os.environ.get(VISIBLE)
    if wanted is None or not gpus:
        return list(gpus)
    uuids = []
    for entry in wanted.split(","):
        uuid = _uuid(entry.strip(), gpus)
        if uuid is None:  # what follows an entry that it does not know, CUDA ignores
            break
        uuids.append(uuid)
    return uuids


def _uuid(entry: str, gpus: dict[str, str]) -> str | None:
    if entry.isdigit():
        in_slots = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        if len(set(gpus.values())) > 1 and not in_slots:
            raise StepbenchError(
                f"{VISIBLE}={entry}: this host's GPUs are of several kinds, which CUDA numbers by "
                "speed; name one by its UUID (`nvidia-smi -L`), or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )
        return dict(enumerate(gpus)).get(int(entry))
    if entry.startswith("MIG-"):
        return entry
    return next((uuid for uuid in gpus if entry and uuid.startswith(entry)), None)


def _gpus() -> dict[str, str]:
    """{UUID: name} of every GPU in the order of its slots; empty where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {pynvml.nvmlDeviceGetUUID(one): pynvml.nvmlDeviceGetName(one) for one in handles}
    finally:
        pynvml.nvmlShutdown()


def _lock(uuid: str) -> str | None:
    """None where the lock is ours now, or else the process that holds it."""
    path = _folder() / uuid.replace("/", "_")
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # not O_CREAT at once: the kernel forbids it on another user's file
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.fchmod(file, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 32).decode()
        os.close(file)
        return holder or "(unknown)"
    os.truncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    return None  # the file stays open: closing it would free the GPU


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / FOLDER
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o777 | stat.S_ISVTX)
    return folder


def _ancestors() -> list[str]:
    """This process and those it descends from."""
    this = psutil.Process()
    return [str(process.pid) for process in (this, *this.parents())]
