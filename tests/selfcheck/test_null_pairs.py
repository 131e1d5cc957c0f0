"""Pairs of equal sides: measured for real, kept, gone on with, and told in figures by hand."""

import math
import time
from dataclasses import replace

import pytest
import torch

from stepbench.errors import StepbenchError
from stepbench.measuring.sweep import this_machine
from stepbench.records.case import Case
from stepbench.records.pair import Block, Pair
from stepbench.selfcheck import null_pairs
from stepbench.selfcheck.journal import add, opened, read
from tests.synthetic import MACHINE

PAIR = Pair(
    method="ping-pong",
    order="reference first",
    device="cuda",
    reference=(Block(step_s=(0.1,), cpu_s=(0.1,)),),
    candidate=(Block(step_s=(0.1,), cpu_s=(0.1,)),),
    stolen_share=0.0,
    foreign_cores=0.0,
    disturbances=(),
)


def test_pairs_are_measured_for_real_and_gone_on_with(tmp_path):
    machine, case = this_machine(), Case(workload="gpt-tiny")
    file = opened(tmp_path / "pairs.jsonl", machine)
    assert null_pairs.measure(file, case, machine, 1, time.monotonic()) == null_pairs.OUT_OF_TIME
    assert read(file) == []
    later = time.monotonic() + 600
    assert null_pairs.measure(file, case, machine, 1, later) == 0
    [line] = read(file)
    pair = Pair.from_json(line["pair"])
    assert min(len(block.step_s) for block in (*pair.reference, *pair.candidate)) >= 3
    assert null_pairs.measure(file, case, machine, 1, later) == 0  # there is enough
    assert read(file) == [line]


def test_the_spread_of_equal_sides_by_hand():
    slower = replace(PAIR, candidate=(Block(step_s=(0.1 * math.exp(0.02),), cpu_s=(0.1,)),))
    [head, *lines] = null_pairs.told(
        [PAIR, slower, replace(PAIR, disturbances=("busy",))]
    ).splitlines()
    assert head == "3 pairs of equal sides, 1 of them disturbed"
    spread = "median +0.00%, standard deviation 0.94%, largest 2.00%"
    assert lines == [f"wall_total: {spread}", f"wall_median: {spread}"]


def test_another_machine_s_pairs_are_not_added_to(tmp_path):
    file = opened(tmp_path / "pairs.jsonl", MACHINE)
    add(file, {"pair": 1})
    assert read(opened(file, MACHINE)) == [{"pair": 1}]
    with pytest.raises(StepbenchError, match=r"cores: .* against 3"):
        opened(file, MACHINE | {"cores": 3})


def test_pairs_of_another_protocol_are_not_added_to(tmp_path):
    file = opened(tmp_path / "pairs.jsonl", MACHINE, protocol=1)
    with pytest.raises(StepbenchError, match=r"protocol: 1 against 2"):
        opened(file, MACHINE, protocol=2)


def test_a_host_of_the_same_kind_goes_on_whatever_its_memory(tmp_path, monkeypatch):
    file = opened(tmp_path / "pairs.jsonl", MACHINE)
    assert opened(file, MACHINE | {"memory_bytes": 1}) == file
    monkeypatch.setattr(torch, "__version__", "2.0")
    with pytest.raises(StepbenchError, match=r"torch: .* against 2\.0; move .* away first"):
        opened(file, MACHINE)
