"""The probes alone, and their CUDA side against a stand-in for the device."""

import multiprocessing
import time
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from stepbench.measuring.probes import communication, device, memory, timing
from stepbench.measuring.process import in_child, in_children
from stepbench.records.measurement import DeviceState
from stepbench.training.types import Loop


def test_marks_are_made_before_the_first_step_and_the_device_is_waited_for_twice(monkeypatch):
    happened = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing
            happened.append("made")

        def record(self):
            happened.append("mark")

        def elapsed_time(self, later):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("wait"))
    window = timing.time_steps(lambda: happened.append("step"), 2, torch.device("cuda"))
    assert happened == ["made"] * 3 + ["wait", "mark", "step", "mark", "step", "mark", "wait"]
    assert window.step_s == (0.0025, 0.0025)


def test_a_clock_that_disagrees_with_the_wall_is_an_objection():
    window = timing.Window(step_s=(0.1, 0.1), cpu_s=(0.1, 0.1), window_s=0.21)
    assert window.objection() == "the steps sum to 0.2000 s but the window took 0.2100 s"
    assert timing.Window(step_s=(0.1, 0.1), cpu_s=(0, 0), window_s=0.201).objection() is None


def test_the_parts_of_a_step_add_up_to_it(monkeypatch):
    clock = iter(range(0, 10**9, 10**6))  # a millisecond passes with every look at it
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(clock))
    marks = timing.Marks(torch.device("cpu"))
    calls = []
    loop = Loop(
        model=None,
        optimizer=None,
        forward=lambda batch: calls.append("forward"),
        backward=lambda loss: [next(clock) for _ in range(9)],
        update=lambda: calls.append("update"),
        loss_scale=lambda: 1.0,
    )
    inside = timing.marked(loop, marks)
    inside.forward(None)  # outside of a window nothing is marked

    def step():
        marks.mark("data")
        for _ in range(2):
            inside.backward(inside.forward(None))
        inside.update()

    window = timing.time_steps(step, 3, torch.device("cpu"), marks=marks, marks_a_step=9)
    assert window.parts_s == {
        "data": (0.001,) * 3,
        "rest": (0.004,) * 3,  # before each forward, before the update, and at the end
        "forward": (0.002,) * 3,
        "backward": (0.02,) * 3,
        "update": (0.001,) * 3,
    }
    total = [sum(parts) for parts in zip(*window.parts_s.values(), strict=True)]
    assert total == pytest.approx(window.step_s)
    assert calls == ["forward", *["forward", "forward", "update"] * 3]


def event(name, begin, end, *, device=DeviceType.CPU, children=(), is_user_annotation=False):
    times = SimpleNamespace(start=begin * 1e6, end=end * 1e6)
    return SimpleNamespace(
        name=name,
        time_range=times,
        device_type=device,
        cpu_children=list(children),
        is_user_annotation=is_user_annotation,
    )


@pytest.mark.parametrize(
    ("when", "length"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 4)], 3),
        ([(5, 6), (1, 9), (2, 3)], 8),
        ([(1, 2), (4, 5)], 2),
    ],
)
def test_the_length_of_a_union(when, length):
    assert communication.total(when) == length


def test_communication_is_exposed_where_nothing_was_computed():
    inner = event("aten::mm", 2, 4)
    events = [
        event("gloo:all_reduce", 1, 6),
        event("gloo:all_reduce", 5, 7),
        event("aten::matmul", 0, 5, children=[inner]),  # waits but for its child
        inner,
        event("aten::add", 6.5, 9),
        event("c10d::allreduce_", 0, 1),
        event("stepbench::forward", 0, 3),
        event("stepbench::backward", 5, 7),
        event("stepbench::update", 8, 9),
    ]
    said = communication.said(events, 10.0, cuda=False)
    assert (said.step_s, said.running_s) == (10.0, 6)  # from 1 to 7
    assert said.exposed_s == 3.5  # but for 2 to 4 and 6.5 to 7
    # Forward runs from 0 to 3, of which 1 to 2 is exposed; backward, 5 to 7, but for its end.
    assert said.exposed_shares == {"forward": 1 / 3, "backward": 1.5 / 2}


def test_communication_on_a_device_is_read_from_its_kernels():
    on_device = {"device": DeviceType.CUDA}
    events = [
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)", 1, 5, **on_device),
        event("sm90_xmma_gemm_f32f32", 2, 3, **on_device),
        event("FSDP::all_gather (blocks.0)", 0, 6, is_user_annotation=True, **on_device),
        event("nccl:all_reduce", 1, 9, is_user_annotation=True, **on_device),
        event("stepbench::forward", 0, 4, is_user_annotation=True, **on_device),
        event("stepbench::backward", 4, 9, is_user_annotation=True, **on_device),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgs)", 6, 8, **on_device),
        event("aten::mm", 0, 9),
        event("nccl:all_reduce", 0, 9),
    ]
    said = communication.said(events, 9.0, cuda=True)
    assert (said.running_s, said.exposed_s) == (6, 5)
    assert said.exposed_shares == {"forward": 2 / 4, "backward": 3 / 5}


@pytest.fixture
def profiled(monkeypatch):
    """What the profiler would see, and be told, in order; it gives no events."""
    happened = []

    @contextmanager
    def named(name):
        happened.append(name)
        yield
        happened.append("end")

    monkeypatch.setattr(communication, "record_function", named)
    monkeypatch.setattr(communication, "synchronize", lambda device: None)
    monkeypatch.setattr(
        communication,
        "profile",
        lambda activities: nullcontext(SimpleNamespace(events=lambda: [])),
    )
    kernel = SimpleNamespace(zero_=lambda: happened.append("kernel"))
    monkeypatch.setattr(torch, "zeros", lambda shape, device: kernel)
    return happened


@pytest.mark.parametrize(("where", "edge"), [("cuda", ["kernel"]), ("cpu", [])])
def test_parts_begin_and_end_with_a_kernel_of_their_own_on_a_device(profiled, where, edge):
    """A range on the device spans its own thread's kernels, and backward has another's."""
    loop = Loop(
        model=None,
        optimizer=None,
        forward=lambda batch: profiled.append("its work"),
        backward=lambda loss: profiled.append("its work"),
        update=lambda: profiled.append("its work"),
        loss_scale=lambda: 1.0,
    )

    def step(watched):
        profiled.clear()
        watched.backward(watched.forward(None))
        watched.update()

    communication.watched_steps(loop, step, torch.device(where))
    assert profiled == [
        one
        for part in ("forward", "backward", "update")
        for one in (f"stepbench::{part}", *edge, "its work", *edge, "end")
    ]


def test_cpu_peak_is_the_bytes_that_were_held():
    def work():
        probe = memory.CpuMemory()
        kept = []

        def run():
            kept.append(torch.zeros(2**20))  # 4 MiB stay
            torch.zeros(3 * 2**20)  # 12 MiB more for a moment

        _, first = probe.watch(run)
        _, second = probe.watch(lambda: torch.zeros(2**18))
        return [probe.method, first.allocated_bytes, second.allocated_bytes]

    method, first, second = in_child(work, deadline_s=60).answer
    assert method == "CPU allocator total"
    assert first == pytest.approx(16 * 2**20, rel=1e-3)
    assert second == pytest.approx(5 * 2**20, rel=1e-3)


def test_a_torch_without_the_switch_sums_allocations_and_says_so(monkeypatch):
    monkeypatch.setattr(memory, "_report_cpu_totals", lambda: False)

    def work():
        probe = memory.CpuMemory()
        kept = []
        _, first = probe.watch(lambda: kept.append(torch.zeros(2**20)))
        _, second = probe.watch(lambda: torch.zeros(2**18))
        return [probe.method, first.allocated_bytes, second.allocated_bytes]

    method, first, second = in_child(work, deadline_s=60).answer
    assert method == "sum of CPU allocations"
    assert (first, second) == (4 * 2**20, 5 * 2**20)


def test_tied_weights_count_once():
    def work():
        weight = torch.zeros(10, 10)
        return memory.distinct_bytes([weight, weight.t(), weight[2:], torch.zeros(3)])

    assert in_child(work, deadline_s=60).answer == 400 + 12


@pytest.fixture
def driver(monkeypatch):
    """An invented driver: what it tells of its one GPU, by NVML's names; `at` is the time."""
    told = {
        "Handle": "GPU-a",
        "ClockInfo": 1980,
        "Temperature": 60,
        "PowerUsage": 650_000,
        "TotalEnergyConsumption": 0,
        "CurrentClocksThrottleReasons": 0x04,
        "ComputeRunningProcesses": [SimpleNamespace(pid=41)],
        "at": 0.0,
    }

    def answer(name):
        def ask(*_):
            if told[name] is None:
                raise device.pynvml.NVMLError(device.pynvml.NVML_ERROR_NOT_SUPPORTED)
            return told[name]

        return ask

    monkeypatch.setattr(device.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(device, "_handle", answer("Handle"))
    for name in told:
        monkeypatch.setattr(device.pynvml, f"nvmlDeviceGet{name}", answer(name), raising=False)
    monkeypatch.setattr(device.time, "monotonic", lambda: told["at"])
    return told


def sampled(driver, *moments):
    """The device's state from second 1 to 3, as moment after moment told it, a second apart."""
    sampler = device.DeviceSampler(0)
    for moment in moments:
        driver |= moment
        sampler.sample()
        driver["at"] += 1.0
    return sampler.between(1.0, 3.0, own=[41])


def test_a_window_between_two_samples_is_told_by_both(driver):
    sampler = device.DeviceSampler(0)
    for at, reasons in ((1.0, 0x08), (2.0, 0x04), (3.0, 0x40), (4.0, 0x80)):
        driver |= {"at": at, "CurrentClocksThrottleReasons": reasons}
        sampler.sample()
    state = sampler.between(2.4, 2.5, own=[41])
    assert (state.samples, state.throttle_reasons) == (
        2,
        ("thermal slowdown by hardware", "power cap"),
    )
    assert sampler.between(4.4, 4.5, own=[41]).throttle_reasons == ("power brake",)


def test_a_devices_state_is_that_of_the_window(driver):
    state = sampled(
        driver,
        {"ClockInfo": 300, "CurrentClocksThrottleReasons": 0x08},  # before it
        {"ClockInfo": 1980, "CurrentClocksThrottleReasons": 0x04, "TotalEnergyConsumption": 5_000},
        {"ClockInfo": 1900, "Temperature": 71},
        {"ClockInfo": 1950, "TotalEnergyConsumption": 1_005_000},
        {"Temperature": 90, "CurrentClocksThrottleReasons": 0x40},  # after it
    )
    assert state == DeviceState(
        samples=3,
        clock_mhz=1950,
        lowest_clock_mhz=1900,
        temperature_c=71,
        power_w=650.0,
        energy_j=1000.0,
        energy_s=2.0,
        throttle_reasons=("power cap",),
        foreign_processes=0,
    )
    assert device.disturbances(state) == ()


def test_energy_is_told_of_a_second_or_more_of_the_counter(driver):
    first = {"TotalEnergyConsumption": 5_000}
    later = {"TotalEnergyConsumption": 605_000}
    assert sampled(driver, {}, first, later).energy_j == 600.0
    sampler = device.DeviceSampler(0)
    for at, told in ((1.0, first), (1.9, later)):
        driver |= {"at": at} | told
        sampler.sample()
    state = sampler.between(0.9, 2.0, own=[41])
    assert (state.energy_j, state.energy_s, state.power_w) == (None, None, 650.0)


@pytest.mark.parametrize(
    ("readings", "rests"),
    [
        ([], True),
        ([(0.0, None), (0.5, None)], True),  # nothing is told
        ([(0.0, 1980), (0.9, 1980)], False),  # not a second yet
        ([(0.0, 1980), (1.0, 1980)], True),
        ([(0.0, 300), (1.0, 1980), (1.5, 1980)], False),
        ([(0.0, 300), (1.0, 1980), (2.0, 1945)], True),
        ([(0.0, 1980), (1.0, 1980), (2.0, 1930)], False),
    ],
)
def test_a_clock_rests_within_2_percent_for_a_second(readings, rests):
    assert device.at_rest(readings) is rests


def test_a_clock_is_asked_now_and_then(driver):
    clock, asked = device.Clock(0), []
    for at, mhz in ((0.0, 300), (0.01, 700), (0.1, 1980), (0.6, 1980), (1.2, 1990)):
        driver |= {"at": at, "ClockInfo": mhz}
        asked.append(clock.at_rest())
    assert asked == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ({"CurrentClocksThrottleReasons": 0x44}, ["thermal slowdown by hardware"]),
        ({"CurrentClocksThrottleReasons": 0x20 | 0x80}, ["thermal slowdown by software, power"]),
        ({"ComputeRunningProcesses": [SimpleNamespace(pid=n) for n in (41, 7)]}, ["other proc"]),
        ({"ComputeRunningProcesses": [SimpleNamespace(pid=7)]}, []),  # a container's numbers
        ({"CurrentClocksThrottleReasons": 0x01 | 0x02 | 0x10}, []),
    ],
)
def test_what_disturbs_on_a_device(driver, moment, told):
    found = device.disturbances(sampled(driver, moment, {}, {}))
    assert len(found) == len(told)
    assert all(words in line for words, line in zip(told, found, strict=True))


def test_what_a_device_does_not_tell_is_none(driver):
    nothing = dict.fromkeys(name for name in driver if name not in ("at", "Handle"))
    state = sampled(driver, nothing, {}, {})
    assert (state.clock_mhz, state.power_w, state.temperature_c) == (None, None, None)
    assert state.foreign_processes is None
    driver["Handle"] = None
    assert sampled(driver, {}, {}) is None


def test_a_device_is_sampled_while_its_process_measures(monkeypatch, driver):
    monkeypatch.undo()
    looks, looked = [], multiprocessing.Value("i", 0)

    def look():
        looks.append(time.monotonic())
        looked.value += 1

    def work():
        while looked.value < 4:  # a look that comes with the answer would be too late
            time.sleep(0.01)
        return looked.value

    [ended] = in_children([(work,)], deadline_s=60, meanwhile=look, every_s=0.1)
    assert ended.death is None
    assert all(later - earlier > 0.09 for earlier, later in pairwise(looks))
