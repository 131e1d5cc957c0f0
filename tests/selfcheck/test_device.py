"""`stepbench selfcheck device`: real checks on this CPU, CUDA's by stand-ins, faults for real."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch._C._autograd import DeviceType

from stepbench.cli.main import stepbench
from stepbench.errors import StepbenchError
from stepbench.measuring.measure import Stopped
from stepbench.measuring.probes.device import Sample
from stepbench.measuring.probes.timing import Window
from stepbench.measuring.sweep import this_machine
from stepbench.records.measurement import Peak
from stepbench.records.outcome import Outcome
from stepbench.selfcheck import cases, checking, device, greedy, host_parts, torch_parts
from stepbench.selfcheck.checking import Check, DoesNotWork, NotHere, find_out
from tests.synthetic import MACHINE, MIB

H100 = {"name": "H100", "memory_bytes": 2**36, "capability": "9.0", "bf16": True}
GPU_HOST = MACHINE | {"gpus": [H100]}
BY_NAME = {one.name: one for one in device.CHECKS}
NEED_A_GPU = {
    *("device memory", "NVML clocks", "NVML power", "NVML energy", "CUDA graph", "tf32"),
    *("bf16+sdpa-efficient", "bf16+sdpa-cudnn", "compile-overhead"),
    *("offload-activations", "offload-optimizer"),
}
# Compilers take half a minute and are tested as a technique; how well a busy machine's clocks agree
# is no promise of the code.
ELSEWHERE = {"compile", "clocks agree"}


def broken(machine):
    raise RuntimeError("broken on purpose")


def fine(machine):
    return f"fine on {machine['name']}, " + "and a reason much longer than any terminal is wide" * 3


def hangs(machine):
    time.sleep(600)


def check(run, **other):
    return Check(name=run.__name__, tries="a test", run=run, **other)


@pytest.fixture
def selfcheck(monkeypatch):
    """Run the command with these checks: the exit code, standard output and error."""

    def run(*checks, arguments=()):
        monkeypatch.setattr(device, "CHECKS", checks)
        done = CliRunner(env={"COLUMNS": "80"}).invoke(
            stepbench, ["selfcheck", "device", *arguments], standalone_mode=False
        )
        return done.return_value, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - NEED_A_GPU - ELSEWHERE))
def test_on_a_cpu_works_what_a_cpu_has(name):
    found = find_out(BY_NAME[name], MACHINE | {"cores": 2})
    if found.outcome == "not here":  # an extra that is not installed, a host that does not tell
        assert "is not installed" in found.reason or found.reason.startswith("unknown: ")
    else:
        assert (found.outcome, found.traceback) == ("works", None), found


@pytest.mark.parametrize("name", sorted(NEED_A_GPU))
def test_what_needs_a_gpu_is_not_here_and_starts_nothing(name):
    found = find_out(BY_NAME[name], MACHINE)
    assert (found.outcome, found.seconds) == ("not here", 0.0)
    assert "GPU" in found.reason or "CPU" in found.reason


def test_a_gpu_host_leaves_nothing_out_but_missing_libraries():
    reasons = {one.name: one.not_here(GPU_HOST) for one in device.CHECKS}
    assert all("is not installed" in reason for reason in reasons.values() if reason), reasons


def test_a_broken_check_is_told_with_its_traceback_and_exit_code_1(selfcheck):
    code, table, lines = selfcheck(check(fine), check(broken))
    assert code == 1
    assert "broken does not work: RuntimeError: broken on purpose" in table
    assert 'broken: raise RuntimeError("broken on purpose")' in table
    assert "1 works, 1 does not, 0 not here" in table
    assert max(map(len, table.partition("\n\n")[0].splitlines())) == 80
    assert lines.count("wide") == 3  # the whole reason


def test_what_was_found_is_told_at_once_and_shown_though_a_person_stops_it(selfcheck, monkeypatch):
    def stopped(machine):
        raise AssertionError("it runs in a child")

    def found(one, machine):
        if one.run is stopped:
            raise KeyboardInterrupt
        return find_out(one, machine)

    monkeypatch.setattr(checking, "find_out", found)
    _, table, lines = selfcheck(check(broken), check(stopped), check(fine))
    assert 'broken: raise RuntimeError("broken on purpose")' in lines
    assert "0 works, 1 does not, 0 not here" in table
    assert 'broken: raise RuntimeError("broken on purpose")' in table


def test_json_holds_reasons_and_tracebacks_whole(selfcheck):
    code, told, _ = selfcheck(check(fine), check(broken), arguments=["--json"])
    assert code == 1
    good, bad = json.loads(told)["checks"]
    assert good["reason"] == fine(this_machine())
    assert good["traceback"] is None
    assert bad["traceback"].endswith("RuntimeError: broken on purpose")
    assert "broken" in bad["traceback"].splitlines()[-2]


def test_nothing_broken_is_exit_code_0(selfcheck):
    lacking = check(broken, not_here=lambda machine: "there is no such thing")
    code, table, _ = selfcheck(check(fine), lacking)
    assert code == 0
    assert "there is no such thing" in table


def test_a_hanging_check_ends_at_its_deadline_and_tells_where_it_stood():
    found = find_out(check(hangs, deadline_s=0.5), MACHINE)
    assert found.outcome == "does not"
    assert "deadline of 0.5 s" in found.reason
    assert "hangs (test_device.py" in found.traceback


def test_a_case_that_is_invalid_does_not_work(monkeypatch):
    outcome = Outcome(kind="invalid", reason="its loss differs", traceback="where\nit was")
    record = SimpleNamespace(outcome=outcome, rounds=())
    monkeypatch.setattr(cases, "measure", lambda *_: record)
    found = find_out(BY_NAME["bf16"], MACHINE)
    assert (found.outcome, found.reason) == ("does not", "invalid: its loss differs")
    assert found.traceback == "where\nit was"


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(kind="oom", reason="no room", phase="backward"),
        Outcome(kind="failed", reason="another error", phase="forward"),
    ],
)
def test_out_of_memory_elsewhere_or_as_another_outcome_does_not_work(monkeypatch, outcome):
    def measured(*_):
        raise Stopped(outcome)

    monkeypatch.setattr(cases, "measure_process", measured)
    with pytest.raises(DoesNotWork, match="must be oom in forward"):
        cases.runs_out_of_memory("forward")(MACHINE)


def test_memory_that_was_granted_does_not_work(monkeypatch):
    monkeypatch.setattr(cases, "measure_process", lambda *_: None)
    with pytest.raises(DoesNotWork, match="1 PiB"):
        cases.runs_out_of_memory("forward")(MACHINE)


def test_an_unknown_phase_is_a_mistake():
    with pytest.raises(StepbenchError, match="build, forward, backward or update"):
        greedy.workload("sleep")


def test_a_peak_that_a_plain_loop_does_not_have_does_not_work(monkeypatch):
    peak = SimpleNamespace(allocated_bytes=10 * MIB)
    measured = SimpleNamespace(memory=SimpleNamespace(steady_step=peak))
    monkeypatch.setattr(cases, "measure_process", lambda *_: measured)
    found = find_out(BY_NAME["peak of a case"], MACHINE)
    assert found.outcome == "does not"
    assert "more than 1% apart" in found.reason


def test_marks_and_trace_agree_within_one_percent():
    assert torch_parts.agreement(0.1, 0.0991).startswith("a step took 100.000 ms by marks, 99.100")
    for traced_s in (0.0989, 0.1011):
        with pytest.raises(DoesNotWork, match="more than 1% apart"):
            torch_parts.agreement(0.1, traced_s)


def test_one_step_that_nobody_interrupted_shows_that_clocks_agree_and_a_wrong_clock_none():
    crowded = torch_parts._closest([0.110, 0.100, 0.120], [0.100, 0.0999, 0.100])
    assert crowded == (0.100, 0.0999)
    wrong = torch_parts._closest([0.110, 0.103], [0.100, 0.100])
    with pytest.raises(DoesNotWork):
        torch_parts.agreement(*wrong)


def test_marks_that_the_wall_contradicts_do_not_work(monkeypatch):
    window = Window(step_s=(0.1,) * 10, cpu_s=(0.1,) * 10, window_s=1.1)
    monkeypatch.setattr(torch_parts, "time_steps", lambda *_: window)
    found = find_out(BY_NAME["clocks agree"], MACHINE)
    assert found.outcome == "does not"
    assert "sum to 1.0000 s but the window took 1.1000 s" in found.reason


def test_clocks_are_read_for_real():
    assert "ms by marks" in find_out(BY_NAME["clocks agree"], MACHINE).reason


def event(name, start_us, end_us, *, kind=DeviceType.CUDA, annotation=False):
    span = SimpleNamespace(start=start_us, end=end_us, elapsed_us=lambda: end_us - start_us)
    return SimpleNamespace(
        name=name, time_range=span, device_type=kind, is_user_annotation=annotation
    )


def test_a_trace_s_time_is_that_of_kernels_on_cuda_and_of_steps_on_a_cpu():
    steps = [
        event(torch_parts.STEP, 0, 300, kind=DeviceType.CPU),
        event(torch_parts.STEP, 400, 450, kind=DeviceType.CPU),
    ]
    kernels = [
        event(torch_parts.STEP, 0, 900, annotation=True),
        event("gemm", 100, 200),
        event("gemm", 250, 600),
    ]
    assert torch_parts._span_s([*steps, *kernels]) == pytest.approx(500e-6)
    assert torch_parts._ranges_s(steps) == pytest.approx([300e-6, 50e-6])
    with pytest.raises(DoesNotWork, match="no kernel"):
        torch_parts._span_s([*steps, kernels[0]])


class Context:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_a_graph_whose_replay_does_nothing_does_not_work(monkeypatch):
    monkeypatch.setattr(torch_parts, "device_of", lambda machine: torch.device("cpu"))
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "Stream": Context,
        "stream": lambda one: one,
        "current_stream": lambda: stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": lambda one: Context(),
        "synchronize": lambda: None,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    found = find_out(BY_NAME["CUDA graph"], GPU_HOST)
    assert (found.outcome, found.reason) == (
        "does not",
        "3 x 2 + 1 gave {3.0} when the graph was replayed",
    )


def sample(at_s, **told):
    quiet = {"clock_mhz": 1980, "temperature_c": 40, "power_w": 600.0, "energy_j": 600.0 * at_s}
    return Sample(at_s=at_s, reasons=0, processes=(), **(quiet | told))


def nvml(monkeypatch, *samples):
    monkeypatch.setattr(host_parts, "_busy_samples", lambda machine: samples)


def test_nvml_figures_by_hand(monkeypatch):
    nvml(monkeypatch, sample(0.0), sample(1.0, clock_mhz=1755), sample(2.0))
    assert host_parts.clocks(GPU_HOST) == "1755 to 1980 MHz at 40 °C"
    assert host_parts.power(GPU_HOST) == "600 to 600 W"
    assert host_parts.energy(GPU_HOST) == "600 W by the energy counter, 600 W by power"


def test_energy_is_told_between_the_samples_that_have_it(monkeypatch):
    nvml(
        monkeypatch,
        sample(0.0, energy_j=None),
        sample(1.0),
        sample(2.0),
        sample(9.0, energy_j=None),
    )
    assert host_parts.energy(GPU_HOST).startswith("600 W by the energy counter")


def test_energy_in_another_unit_does_not_work(monkeypatch):
    nvml(monkeypatch, sample(0.0, energy_j=0.0), sample(1.0, energy_j=600_000.0))
    with pytest.raises(DoesNotWork, match="600000 W by the energy counter"):
        host_parts.energy(GPU_HOST)


@pytest.mark.parametrize(
    ("field", "run"),
    [
        ("clock_mhz", host_parts.clocks),
        ("power_w", host_parts.power),
        ("energy_j", host_parts.energy),
    ],
)
def test_what_nvml_does_not_tell_is_unknown(monkeypatch, field, run):
    nvml(monkeypatch, sample(0.0, **{field: None}), sample(1.0, **{field: None}))
    with pytest.raises(NotHere, match="unknown: NVML tells no"):
        run(GPU_HOST)


@pytest.mark.parametrize(
    ("told_bytes", "outcome"),
    [(600 * MIB, "works"), (None, "not here"), (5 * MIB, "does not")],
)
def test_device_memory_by_nvml_s_list(monkeypatch, told_bytes, outcome):
    peak = Peak(allocated_bytes=64 * MIB, reserved_bytes=64 * MIB, process_bytes=told_bytes)
    probe = SimpleNamespace(watch=lambda run: (None, peak))
    monkeypatch.setattr(host_parts, "memory_probe", lambda device: probe)
    assert find_out(BY_NAME["device memory"], GPU_HOST).outcome == outcome


def test_a_kernel_that_counts_no_run_delay_is_unknown(monkeypatch):
    monkeypatch.setattr(host_parts, "sound", lambda: False)
    with pytest.raises(NotHere, match="unknown: /proc/self/schedstat"):
        host_parts.run_delay(MACHINE)


def test_an_old_torch_does_not_work(monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    with pytest.raises(DoesNotWork, match=r"torch must be 2\.11 or later"):
        host_parts.versions(MACHINE)


def test_gvisor_is_seen_in_the_kernel_s_messages(monkeypatch):
    messages = "[   0.000000] Starting gVisor...\n"
    monkeypatch.setattr(host_parts, "_kernel_messages", lambda: messages)
    assert host_parts.sandbox(MACHINE).startswith("gVisor, ")
    monkeypatch.setattr(host_parts, "_kernel_messages", lambda: "Linux version 6.18")
    assert host_parts.sandbox(MACHINE).startswith("no gVisor, ")


def test_a_kernel_whose_messages_may_not_be_read_is_unknown(monkeypatch):
    refusing = SimpleNamespace(klogctl=lambda *_: -1)
    monkeypatch.setattr(host_parts.ctypes, "CDLL", lambda name: refusing)
    with pytest.raises(NotHere, match="unknown: Linux"):
        host_parts.sandbox(MACHINE)
