"""What else the host does: by hand, and beside a neighbour that is really busy."""

import os
import subprocess
import sys
import time

import pytest

from stepbench.measuring.probes.surroundings import HostLoad
from stepbench.measuring.process import in_child
from stepbench.stats import noise


def load(**changed):
    return HostLoad(**{"at_s": 100.0, "busy_s": 50.0, "stolen_s": 1.0, "own_s": 5.0} | changed)


@pytest.mark.parametrize(
    ("later", "told"),
    [
        (load(at_s=102.0, busy_s=52.0, own_s=7.0), ()),
        (
            load(at_s=102.0, busy_s=53.0, own_s=7.0),
            ("other processes kept processors busy",),
        ),
        (
            load(at_s=102.0, busy_s=52.0, own_s=7.0, stolen_s=1.2),
            ("the hypervisor took processor time",),
        ),
    ],
)
def test_disturbances_by_hand(later, told):
    assert load().disturbances(later, tolerated=0.25) == told


@pytest.mark.parametrize(("delay_s", "many"), [(0.09, 0), (0.11, 1)])
def test_a_twentieth_of_waiting_for_a_processor_disturbs(delay_s, many):
    quiet = load(at_s=102.0, busy_s=52.0, own_s=7.0)
    assert len(load().disturbances(quiet, 0.25, delay_s)) == many
    told = load().disturbances(load(at_s=102.0, busy_s=53.0, own_s=7.0), 0.25, delay_s)
    assert told == ("other processes kept processors busy",)  # which is why it waited


@pytest.mark.parametrize(
    ("cores", "processes", "tolerated"),
    [(2, 1, 0.25), (2, 2, 0.25), (2, 9, 0.25), (4, 1, 0.75), (64, 1, 15.75), (64, 8, 14)],
)
def test_others_may_use_a_quarter_of_what_a_case_leaves_free(
    monkeypatch, cores, processes, tolerated
):
    monkeypatch.setattr(noise.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert noise.tolerated_cores(processes) == tolerated


@pytest.mark.parametrize(("foreign_cores", "many"), [(2.0, 0), (20.0, 1)])
def test_a_large_host_has_room_for_others(monkeypatch, foreign_cores, many):
    monkeypatch.setattr(noise.os, "sched_getaffinity", lambda _: set(range(64)))
    later = load(at_s=101.0, busy_s=51.0 + foreign_cores, own_s=6.0)
    assert len(load().disturbances(later, noise.tolerated_cores(1))) == many


def busy():
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def test_a_busy_neighbour_is_noticed():
    def watch():
        before = HostLoad.read([os.getpid()])
        time.sleep(1.0)
        return before.disturbances(HostLoad.read([os.getpid()]), noise.FOREIGN_CORES)

    neighbour = busy()
    try:
        told = in_child(watch, deadline_s=60).answer
    finally:
        neighbour.kill()
    assert "other processes kept processors busy" in told


def test_what_a_loader_worker_uses_is_our_own():
    def watch():
        before = HostLoad.read([os.getpid()])
        busy()
        while (own_s := HostLoad.read([os.getpid()]).own_s - before.own_s) < 0.3:
            time.sleep(0.1)
        return own_s

    told = in_child(watch, deadline_s=60)
    assert told.death is None
    assert told.answer >= 0.3
