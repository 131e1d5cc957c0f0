"""Two processes never take one GPU: real locks between real processes, over an invented driver."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

DRIVER = """
import os

NAMES = {}
class NVMLError(Exception): pass
def nvmlInit():
    if not NAMES: raise NVMLError("driver not loaded")
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return len(NAMES)
def nvmlDeviceGetHandleByIndex(index): return list(NAMES)[index]
def nvmlDeviceGetUUID(handle): return handle
def nvmlDeviceGetName(handle): return NAMES[handle]
"""
TAKE = """
import os, sys
from stepbench.errors import StepbenchError
from stepbench.measuring.lock import hold_gpus
try:
    changed = hold_gpus(int(os.environ.get('WANTED', 1)))
except StepbenchError as error:
    print(error)
else:
    print(changed, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
"""
WAIT = TAKE + "sys.stdin.read()\n"
AGAIN = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])\n"
# A sweep on a torch with CUDA, as far as one goes without a device.
SWEEP = """
import os, sys, torch
from pathlib import Path
torch.version.cuda = "13.0"
from stepbench.measuring.process import in_child
from stepbench.measuring.settings import Settings
from stepbench.measuring.sweep import open_sweep
file = open_sweep(Path("results"), Settings(), project=Path("."), commit="abc")
seen = in_child(lambda: os.environ["CUDA_VISIBLE_DEVICES"], deadline_s=60).answer
print(seen, file.path, flush=True)
sys.stdin.read()
"""


class Host:
    """A host with GPUs; each `take` is a process that keeps what it took until the test ends."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        self.has("GPU-a", "GPU-b")

    def has(self, *uuids, names=()):
        kinds = names or ["H200"] * len(uuids)
        told = DRIVER.replace("NAMES = {}", f"NAMES = {dict(zip(uuids, kinds, strict=True))}")
        (self.folder / "pynvml.py").write_text(told)

    def take(self, program=WAIT, **environ):
        """A process that took a GPU or could not, and what it said."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
        path = {"PYTHONPATH": str(self.folder), "TMPDIR": str(self.folder)}
        process = subprocess.Popen(
            [sys.executable, "-c", program, WAIT],
            cwd=self.folder,
            env=kept | path | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack.callback(process.communicate)
        return process, process.stdout.readline().strip()


@pytest.fixture
def host(tmp_path):
    with ExitStack() as stack:
        yield Host(tmp_path, stack)


def test_each_takes_the_first_free_one_and_the_third_is_told_who_has_them(host):
    first, said = host.take()
    assert said == "True GPU-a"
    second, said = host.take()
    assert said == "True GPU-b"
    _, said = host.take()
    assert said == (
        f"no GPU is free: GPU-a by process {first.pid}, GPU-b by process {second.pid}; "
        "wait for a sweep to end"
    )


def test_a_killed_process_holds_nothing(host):
    first, _ = host.take()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert host.take()[1] == "True GPU-a"


def test_children_use_what_their_parent_holds(host):
    parent = WAIT.replace("sys.stdin.read()", "") + AGAIN
    process, said = host.take(parent)
    assert said == "True GPU-a"
    assert process.stdout.readline().strip() == "False GPU-a"
    assert host.take()[1] == "True GPU-b"


@pytest.mark.parametrize(
    ("visible", "taken"),
    [
        ("GPU-b", "False GPU-b"),
        ("1", "True GPU-b"),
        ("1,0", "True GPU-b"),
        (" GPU-b , GPU-a", "True GPU-b"),
        ("MIG-7/1/0", "False MIG-7/1/0"),
        ("", "False "),
        ("-1", "False -1"),
        ("7,0", "False 7,0"),  # as CUDA does: nothing from the unknown one on
    ],
)
def test_the_users_choice_is_respected(host, visible, taken):
    assert host.take(CUDA_VISIBLE_DEVICES=visible)[1] == taken.strip()


def test_the_users_choice_is_locked_too(host):
    first, _ = host.take(CUDA_VISIBLE_DEVICES="GPU-b")
    _, said = host.take(CUDA_VISIBLE_DEVICES="1")
    assert said.startswith(f"no GPU is free: GPU-b by process {first.pid};")


def test_a_number_among_unlike_gpus_is_ambiguous(host):
    host.has("GPU-a", "GPU-b", names=["T4", "H200"])
    assert "name one by its UUID" in host.take(CUDA_VISIBLE_DEVICES="0")[1]
    ordered = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert host.take(**ordered)[1] == "True GPU-a"


def test_without_a_driver_nothing_is_locked(host):
    host.has()
    assert host.take()[1] == "False None"
    assert not (host.folder / "stepbench-gpus").exists()


def test_a_sweep_of_several_ranks_takes_as_many(host):
    host.has("GPU-a", "GPU-b", "GPU-c")
    first, said = host.take(WANTED="2")
    assert said == "True GPU-a,GPU-b"
    second, said = host.take(WANTED="2")
    assert said.startswith(f"only 1 GPUs are free, not 2: GPU-a by process {first.pid}")
    for process in (first, second):
        process.kill()
        process.wait()
    assert host.take(WANTED="8")[1] == "True GPU-a,GPU-b,GPU-c"


def test_asv_holds_as_many_as_the_environment_says(host):
    assert host.take(SWEEP, STEPBENCH_GPUS="2")[1].split()[0] == "GPU-a,GPU-b"
    process, _ = host.take(SWEEP, STEPBENCH_GPUS="two", CUDA_VISIBLE_DEVICES="")
    assert process.wait() != 0


def test_two_sweeps_of_one_host_have_a_gpu_and_a_run_each(host):
    (gpu_a, run_a), (gpu_b, run_b) = (host.take(SWEEP)[1].split() for _ in range(2))
    assert (gpu_a, gpu_b) == ("GPU-a", "GPU-b")
    assert run_a != run_b
