"""What a run on a GPU shows beside times and memory: its state, energy, and utilization."""

from dataclasses import replace

import pytest

from stepbench.records.case import Combination
from stepbench.records.measurement import DeviceState, Rank
from stepbench.report import tables
from tests.synthetic import MACHINE, case, measurement, record, run, run_file

BASELINE = measurement([0.1, 0.1, 0.1])


def test_the_gpus_state_and_the_energy_of_a_step():
    state = DeviceState(
        samples=9, clock_mhz=1980, lowest_clock_mhz=1900, temperature_c=71, power_w=650.0,
        throttle_reasons=("power cap",), foreign_processes=None, energy_j=1300.0, energy_s=2.0,
    )  # fmt: skip
    hot = replace(BASELINE, device=state)
    file = run_file([record(case("bf16"), [(hot, BASELINE)])])
    row = tables.terminal(file).split("clock limited by")[1].splitlines()[2]
    assert row.split() == ["bf16", "65.0", "650", "1,980", "71.0", "power", "cap"]


def on_gpu(name, combination="bf16", **changes):
    """One case of 2e12 operations, that computes a third of them again, in 10 ms."""
    useful = replace(BASELINE, counters=replace(BASELINE.counters, flops=2 * 10**12))
    again = measurement([0.01])
    again = replace(again, counters=replace(again.counters, flops=3 * 10**12))
    of = replace(case(combination), **changes)
    return run_file(
        [record(of, [(again, useful)])], run(machine=MACHINE | {"gpus": [{"name": name}]})
    )


def utilization_of(file):
    return tables.as_json(file)["tables"][0]["rows"][1]["figures"]["utilization"]


def test_utilization_is_of_useful_operations_against_the_peak_of_the_type():
    assert utilization_of(on_gpu("NVIDIA H200")) == pytest.approx(200 / 989.4)
    assert utilization_of(on_gpu("NVIDIA H200", "tf32")) == pytest.approx(200 / 494.7)
    assert utilization_of(on_gpu("NVIDIA H200", ranks=2)) == pytest.approx(100 / 989.4)
    grown = on_gpu("NVIDIA H200", ranks=2, batch_factor=2)
    assert utilization_of(grown) == pytest.approx(200 / 989.4)
    text = tables.terminal(on_gpu("NVIDIA H200"))
    [row] = [line for line in text.splitlines() if line.startswith("bf16")]
    assert row.split()[-2:] == ["20.2%", "30.3%"]  # of what ran, a third was done again
    assert "Peaks of the NVIDIA H200 by its data sheet, in TFLOP/s: fp32 67" in text


def test_scores_that_attention_computes_again_are_no_use():
    useful = replace(BASELINE.counters, flops=24 * 10**11, recomputed_score_flops=4 * 10**11)
    of, base = measurement([0.01]), replace(BASELINE, counters=useful)
    file = run_file(
        [record(case("bf16"), [(replace(of, counters=useful), base)])],
        run(machine=MACHINE | {"gpus": [{"name": "NVIDIA H200"}]}),
    )
    figures = tables.as_json(file)["tables"][0]["rows"][1]["figures"]
    assert figures["utilization"] == pytest.approx(200 / 989.4)
    assert figures["hardware_utilization"] == pytest.approx(240 / 989.4)


@pytest.mark.parametrize("name", ["NVIDIA H200 NVL", "NVIDIA H100 PCIe", "Radeon"])
def test_unknown_hardware_has_no_utilization(name):
    assert utilization_of(on_gpu(name)) is None
    assert "MFU" not in tables.terminal(on_gpu(name))


def test_a_type_without_a_peak_has_no_utilization():
    assert utilization_of(on_gpu("Tesla V100-SXM2-16GB", "tf32")) is None


def test_what_a_case_need_not_compute_is_no_use():
    """Frozen weights have no gradients: the baseline's products of them are not of its step."""
    base = replace(BASELINE, counters=replace(BASELINE.counters, flops=3 * 10**12))
    frozen = measurement([0.01])
    frozen = replace(frozen, counters=replace(frozen.counters, flops=2 * 10**12))
    header = run(machine=MACHINE | {"gpus": [{"name": "NVIDIA H200"}]})
    assert utilization_of(run_file([record(case("bf16"), [(frozen, base)])], header)) == (
        pytest.approx(200 / 989.4)
    )


def test_quantized_layers_have_a_peak_that_is_not_in_the_list():
    file = on_gpu("NVIDIA H200", combination="bf16")
    combination = Combination({"precision": "bf16", "quantization": "fp8"})
    of = replace(file.records[0].case, combination=combination)
    file.records[0] = replace(file.records[0], case=of)
    assert utilization_of(file) is None


def test_the_energy_of_a_step_is_that_of_all_ranks():
    state = DeviceState(
        samples=9, clock_mhz=1980, lowest_clock_mhz=1900, temperature_c=71, power_w=600.0,
        throttle_reasons=(), foreign_processes=None, energy_s=2.0,
    )  # fmt: skip
    ranks = [
        Rank(
            window_s=1.0,
            memory=BASELINE.memory,
            collective_calls={},
            collective_bytes={},
            device=replace(state, power_w=power_w, energy_j=power_w * 2),
        )
        for power_w in (600.0, 400.0)
    ]
    hot = replace(BASELINE, device=state, ranks=tuple(ranks))
    [_, row] = tables.as_json(run_file([record(case("bf16"), [(hot, BASELINE)])]))["tables"][0][
        "rows"
    ]
    assert row["figures"]["device"]["power_w"] == 1000.0
    assert row["figures"]["device"]["energy_j"] == pytest.approx(100.0)
    ranks[1] = replace(ranks[1], device=replace(state, power_w=400.0, energy_s=None))
    short = replace(hot, ranks=tuple(ranks))
    [_, row] = tables.as_json(run_file([record(case("bf16"), [(short, BASELINE)])]))["tables"][0][
        "rows"
    ]
    assert row["figures"]["device"]["energy_j"] is None  # one GPU's window was too short
