"""Tables: a record made by hand gives exactly this row, and nothing in a record acts as markup."""

import json
import math
from dataclasses import replace

import pytest

from stepbench.records.measurement import Communication
from stepbench.records.outcome import Outcome
from stepbench.records.run import Calibration
from stepbench.report import column, columns, formats, tables
from stepbench.stats.measures import Estimate
from stepbench.versions import MEASURE_VERSION
from tests.synthetic import MACHINE, MIB, WORKLOAD, case, measurement, record, run, run_file

BASELINE = measurement([0.1, 0.1])
FASTER = measurement([0.05], peak_bytes=75 * MIB, losses=[5.0, 4.004])
OOM = Outcome(kind="oom", phase="backward", reason="2 GiB asked for, 1 GiB free")
UNSUPPORTED = Outcome(kind="unsupported", reason="no tensor cores")


def text_rows(text):
    """The cells of the terminal table's rows; columns are two spaces or more apart."""
    lines = text.split("\n\n")[1].splitlines()[2:]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_a_record_gives_exactly_this_row():
    file = run_file([record(case("bf16"), [(FASTER, BASELINE)] * 2)])
    assert text_rows(tables.terminal(file)) == [
        ["baseline", "ok", "100", "1.00x", "100", "1.00x", "80.0", "0", "10,000"],
        ["bf16", "ok", "50.0", "~2.00x", "75.0", "0.75x", "55.0", "1.0e-03", "20,000"],
    ]


def test_the_interval_stands_from_6_rounds_on():
    pairs = [(measurement([0.1]), measurement([0.1 * ratio])) for ratio in (2, 1, 3, 1, 4, 2)]
    six, five = (run_file([record(case("bf16"), pairs[:count])]) for count in (6, 5))
    assert text_rows(tables.terminal(six))[1][3] == "2.00x [1.00, 4.00]"
    assert text_rows(tables.terminal(five))[1][3] == "~2.00x"
    assert "~: no interval below 6 rounds" not in tables.terminal(six)
    assert "~: no interval below 6 rounds" in tables.terminal(five)


def test_the_caption_says_what_was_measured_on_what_and_how():
    header = run(edited=True, machine=MACHINE | {"gpus": [{"name": "NVIDIA H200"}]})
    pairs = [(measurement([0.1] * 5), measurement([0.1] * 20))]
    file = run_file([record(case("bf16"), pairs * 2), record(case("fp16"), pairs)], header)
    assert tables.terminal(file).splitlines()[:2] == [
        f"{WORKLOAD} on Test CPU (AVX2), 2 cores, 8 GiB, NVIDIA H200",
        "torch 2.13.0+cpu, 1-2 rounds, 5-20 steps a process, one thread a rank, ~: no interval "
        f"below 6 rounds, memory: test tensors, ruler {MEASURE_VERSION}, commit 0123456789 + "
        "edits, 2026-01-31 12:00 UTC",
    ]


def test_cases_without_a_number_are_kept_with_their_reason_told_once():
    measured = [(FASTER, BASELINE)]
    file = run_file(
        [
            record(case("bf16"), measured, outcome=OOM),
            record(case("tf32"), outcome=UNSUPPORTED),
            record(case("tf32+accum2"), outcome=UNSUPPORTED),
            record(case("fp16"), measured),
        ]
    )
    text = tables.terminal(file)
    assert [row[:2] for row in text_rows(text)] == [
        ["baseline", "ok"],
        ["bf16", "oom in backward [1]"],
        ["tf32", "unsupported [2]"],
        ["tf32+accum2", "unsupported [2]"],
        ["fp16", "ok"],
    ]
    assert all(len(row) == 2 for row in text_rows(text)[1:4])
    assert text.count("[1] 2 GiB asked for, 1 GiB free\n") == 1
    assert text.count("[2] no tensor cores\n") == 1


def test_a_disturbed_case_keeps_its_number_and_says_what_disturbed_it():
    stolen = measurement([0.05], disturbances=["steal 12%"])
    text = tables.terminal(run_file([record(case("bf16"), [(stolen, BASELINE)])]))
    assert text_rows(text)[1][1:4] == ["ok, disturbed [1]", "50.0", "~2.00x"]
    assert "[1] disturbed: steal 12%" in text


def test_the_baselines_own_record_comes_first_and_is_not_made_up():
    own = record(case(), [(measurement([0.2]), measurement([0.1]))])
    file = run_file([record(case("bf16"), [(FASTER, BASELINE)]), own])
    assert [row[:4] for row in text_rows(tables.terminal(file))] == [
        ["baseline", "ok", "200", "~0.50x"],
        ["bf16", "ok", "50.0", "~2.00x"],
    ]


def test_each_workload_has_its_own_table_and_ranks_are_named():
    pairs = [(FASTER, BASELINE)]
    file = run_file(
        [
            record(case("bf16", workload="one"), pairs),
            record(case("bf16", workload="two", ranks=2), pairs),
        ]
    )
    first, second = (table for table in tables.as_json(file)["tables"])
    assert [first["workload"], second["workload"]] == ["one", "two"]
    assert "bf16 on 2 ranks" in tables.terminal(file)
    assert "Test CPU" in tables.terminal(file).split("two on ")[1]


def test_a_run_without_records_says_so():
    assert "holds no record yet" in tables.terminal(run_file([]))


def test_nothing_from_a_record_steers_the_terminal():
    evil = Outcome(kind="failed", reason="\x1b[2J\x1b]0;owned\x07 line\nnext\r\u202eright")
    file = run_file([record(case("\x1b[31mred", workload="w\x9b"), outcome=evil)])
    text = tables.terminal(file)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert r"[1] \x1b[2J\x1b]0;owned\x07 line next \u202eright" in text


def test_nothing_from_a_record_breaks_a_markdown_table():
    evil = Outcome(kind="failed", reason="a|b\n\n<img src=x> `c` *d*")
    file = run_file(
        [
            record(case("x|y<b>", workload="<w>"), outcome=evil),
            record(case("bf16", workload="<w>"), [(FASTER, BASELINE)]),
        ]
    )
    text = tables.markdown(file)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    always = [one for one in columns.COLUMNS if one.show is column.always and not one.group]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {len(always) + 3}
    assert r"x\|y\<b\>" in text
    assert r"[1] a\|b \<img src=x\> \`c\` \*d\*" in text


def test_json_has_base_units_and_null_where_there_is_no_finite_number():
    diverged = measurement([0.05], losses=[math.nan, 4.0])
    file = run_file(
        [
            record(case("bf16"), [(FASTER, BASELINE)]),
            record(case("fp16"), [(diverged, BASELINE)]),
            record(case("tf32"), outcome=UNSUPPORTED),
        ]
    )
    decoded = json.loads(json.dumps(tables.as_json(file), allow_nan=False))
    assert decoded["run"]["id"] == file.run.id
    _, bf16, fp16, tf32 = decoded["tables"][0]["rows"]
    assert bf16["case"]["combination"] == {"techniques": {"precision": "bf16"}}
    assert bf16["figures"] == {
        "step_s": 0.05,
        "typical_step_s": 0.05,
        "undelayed_step_s": None,
        "amortised": False,
        "speedup": {"median": 2.0, "low": None, "high": None, "rounds": 1},
        "peak_bytes": 75 * MIB,
        "memory_ratio": {"median": 0.75, "low": None, "high": None, "rounds": 1},
        "working_bytes": 55 * MIB,
        "loss_difference": pytest.approx(0.001),
        "tokens_per_s": 20000.0,
        "data_wait_share": None,
        "host_bytes": None,
        "epoch_pause_s": None,
        "disturbances": [],
        "utilization": None,
        "device": None,
        "set_aside": 0,
        "set_aside_because": [],
        "ranks": None,
        "budget": None,
        "compilation": None,
        "scaling": None,
        "state_ratio": 1.0,
        "trained_share": None,
        "unproved": [],
        "growth_bytes_per_step": None,
        "process_peak_bytes": None,
        "cpu_speedup": {"median": 2.0, "low": None, "high": None, "rounds": 1},
        "narrow_share": 0.0,
        "hardware_utilization": None,
    }
    assert fp16["figures"]["loss_difference"] is None
    assert tf32["figures"] is None
    assert tf32["outcome"]["reason"] == "no tensor cores"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.milliseconds(0.0521), "52.1"),
        (formats.milliseconds(0.0000123), "0.0123"),
        (formats.milliseconds(12.3456), "12,346"),
        (formats.mebibytes(1.5 * MIB), "1.50"),
        (formats.ratio(1.416), "1.42x"),
        (formats.ratio(0.0832), "0.083x"),
        (formats.difference(0.0), "0"),
        (formats.difference(math.inf), "inf"),
        (formats.span([], "round"), "no rounds"),
        (formats.span([1], "round"), "1 round"),
        (run(commit=None).source, "no commit"),
        (formats.estimate(Estimate(median=0.09, low=0.081, high=1.1, rounds=6)),
         "0.090x [0.081, 1.10]"),
        (formats.estimate(Estimate(median=0.5, low=None, high=None, rounds=5)), "~0.50x"),
        (formats.estimate(Estimate(median=1.0, low=1.0, high=1.0, rounds=5)), "1.00x"),
    ],
)  # fmt: skip
def test_formats(shown, expected):
    assert shown == expected


def test_loading_is_shown_where_it_matters_only():
    def waiting(share):
        loaded = measurement([0.1, 0.1])
        return replace(
            loaded, data_wait_s=(share * 0.1,) * 2, host_bytes=200 * MIB, epoch_pause_s=0.025
        )

    quick, slow = waiting(0.01), waiting(0.4)
    assert "data wait" not in tables.terminal(run_file([record(case("bf16"), [(quick, quick)])]))
    text = tables.terminal(run_file([record(case("bf16"), [(slow, quick)])]))
    [header] = [line for line in text.splitlines() if line.startswith("combination")]
    assert header.split("  ")[-1].strip() == "epoch pause ms"
    [row] = [line for line in text.splitlines() if line.startswith("bf16")]
    assert row.split()[-3:] == ["40%", "200", "25.0"]


def test_calibration_says_how_fast_the_machine_was_and_how_much_it_wandered():
    def at(flops_per_s, to_device=None):
        return Calibration(
            measured_at="2026-11-22T00:00:00+00:00",
            matmul_dtype="float32",
            matmul_flops_per_s=flops_per_s,
            memory_bytes_per_s=40e9,
            host_to_device_bytes_per_s=to_device,
            pageable_to_device_bytes_per_s=to_device and to_device / 4,
        )

    assert formats.calibration([at(90e9), at(100e9), at(110e9)]) == (
        "calibration: 100 GFLOP/s (float32 products, range 20%), memory 40 GB/s"
    )
    assert formats.calibration([at(90e9, 48e9)]).endswith(
        "to the device 48.0 GB/s pinned and 12.0 pageable"
    )


def test_what_each_rank_holds_and_exchanges():
    told = replace(
        BASELINE,
        tokens=2000,
        communication=Communication(step_s=0.2, running_s=0.1, exposed_s=0.05),
        counters=replace(
            BASELINE.counters,
            collective_calls={"reduce_scatter": 7, "all_gather": 13},
            collective_bytes={"reduce_scatter": 5 * MIB, "all_gather": 9 * MIB},
        ),
    )
    grown = replace(case("bf16"), ranks=2, batch_factor=2)
    file = run_file([record(grown, [(told, BASELINE)]), record(case("bf16"), [(FASTER, BASELINE)])])
    name = "bf16 on 2 ranks, global batch x2"
    first, second = tables.terminal(file).split(tables.LEGEND[-1])
    assert text_rows(first)[1][:4] == [name, "ok", "100", "~2.00x"]
    assert text_rows(first)[1][7] == "n/a"
    assert [cell.strip() for cell in second.splitlines()[4].split("  ") if cell.strip()] == [
        name, "10.0", "10.0", "10.0", "100", "100", "100",
        "13 all-gather 9.00, 7 reduce-scatter 5.00", "25%",
    ]  # fmt: skip
    assert f"| {name} " in tables.markdown(file)


def test_the_step_budget_adds_up_to_the_step():
    told = replace(
        measurement([0.1, 0.3]),
        parts_s={"data": (0.01, 0.01), "forward": (0.04, 0.16), "backward": (0.05, 0.13)},
        communication=Communication(
            step_s=1, running_s=1, exposed_s=1, exposed_shares={"forward": 0.5}
        ),
    )
    file = run_file([record(case("bf16"), [(told, BASELINE)])])
    [_, row] = tables.as_json(file)["tables"][0]["rows"]
    # Of 400 ms 20, 200 and 180 were the parts', half of forward's exposed; the step is 200 ms.
    assert row["figures"]["budget"] == pytest.approx(
        {"data": 0.01, "forward": 0.05, "backward": 0.09, "communication": 0.05, "update": 0,
         "rest": 0}
    )  # fmt: skip
    assert sum(row["figures"]["budget"].values()) == pytest.approx(row["figures"]["step_s"])
    below = tables.terminal(file).split(tables.LEGEND[-1])[1].splitlines()
    assert below[4].split() == ["bf16", "10.0", "50.0", "90.0", "50.0", "0", "0"]


def test_rounds_set_aside_are_told():
    loud = measurement([0.1], disturbances=["steal 12%"])
    file = run_file([record(case("bf16"), [*[(FASTER, BASELINE)] * 2, (loud, BASELINE)])])
    text = tables.terminal(file)
    assert text_rows(text)[1][:4] == ["bf16", "ok [1]", "50.0", "~2.00x"]
    assert "[1] 1 round left out, measured again: steal 12%" in text


def test_how_gradients_fare_in_float16():
    def of(scale, skipped, zeros):
        counters = replace(
            BASELINE.counters,
            matmul_flops={"float16": 1000},
            loss_scale=scale,
            zero_gradients=zeros,
        )
        return replace(BASELINE, counters=counters, skipped_steps=skipped)

    pairs = [(of(65536.0, 0, 0.0), BASELINE), (of(256.0, 8, 0.125), BASELINE)]
    text = tables.terminal(run_file([record(case("fp16"), pairs)]))
    [header] = [line for line in text.splitlines() if line.startswith("combination")][:1]
    assert header.split()[-5:] == ["loss", "scale", "skipped", "zero", "grads"]
    assert text_rows(text)[1][-3:] == ["256", "8", "12.50%"]
    assert "loss scale" not in tables.terminal(
        run_file([record(case("bf16"), [(FASTER, BASELINE)])])
    )


def test_what_is_trained_and_kept_for_it_is_shown_where_it_differs():
    thin = replace(
        BASELINE,
        memory=replace(BASELINE.memory, optimizer_bytes=MIB // 2),
        counters=replace(BASELINE.counters, trained_elements=3, gradient_elements=5, elements=1000),
    )
    whole = replace(
        BASELINE, counters=replace(BASELINE.counters, trained_elements=1000, elements=1000)
    )
    text = tables.terminal(run_file([record(case("bf16"), [(thin, whole)])]))
    [baseline, lora] = text_rows(text)[:2]
    assert baseline[-2:] == ["1.00x", "100.00%"]
    assert lora[-2:] == ["0.050x", "0.50%"]
    assert columns.STATE_LEGEND in text
    assert "trained" not in tables.terminal(run_file([record(case("bf16"), [(whole, whole)])]))


def test_growth_is_shown_where_there_is_any():
    grows = replace(BASELINE, growth_bytes_per_step=float(MIB))
    leaking = run_file([record(case("bf16"), [(grows, BASELINE)])])
    text = tables.terminal(leaking)
    assert "growth MiB" in text
    assert next(line for line in text.splitlines() if line.startswith("bf16")).endswith("1.00")
    assert "growth" not in tables.terminal(run_file([record(case("bf16"), [(BASELINE, BASELINE)])]))


def timed(steps, **changes):
    return replace(measurement(steps), batches=tuple(range(len(steps))), **changes)


def test_a_case_whose_median_hides_what_its_step_costs_is_amortised():
    """Every tenth step takes a second; the baseline has not."""
    steps = [1.0 if step % 10 == 4 else 0.1 for step in range(20)]
    periodic, plain = timed(steps, period=10), timed([0.1] * 20, period=10)
    text = tables.terminal(run_file([record(case("bf16"), [(periodic, plain)])]))
    header = text.split("\n\n")[1].splitlines()[0]
    assert [row[1:4] + row[-1:] for row in text_rows(text)] == [
        ["ok", "100", "1.00x", "100"],
        ["ok, amortised", "190", "~0.53x", "100"],
    ]
    assert header.endswith("typical ms")
    assert columns.TYPICAL_LEGEND in text
    even = tables.terminal(run_file([record(case("bf16"), [(plain, plain)])]))
    assert "typical" not in even


def test_what_others_took_stands_beside_the_step_where_it_is_known():
    alone = {"environment": {"device": "cpu", "threads": 1, "torch": "2.13.0"}}
    crowded = timed([0.1, 0.5], delay_s=(0.0, 0.4), **alone)
    text = tables.terminal(run_file([record(case("bf16"), [(crowded, BASELINE)])]))
    assert [row[-1] for row in text_rows(text)] == ["10,000", "~0.33x"]  # not known of the baseline
    assert text_rows(text)[1][-2] == "100"
    assert text_rows(text)[1][1:3] == ["ok", "300"]
    assert "undelayed ms" in text
    quiet = timed([0.1, 0.1], delay_s=(0.0, 0.001), **alone)
    text = tables.terminal(run_file([record(case("bf16"), [(quiet, BASELINE)])]))
    assert "undelayed" not in text


def test_under_contention_the_ratio_of_processor_time_stands_beside_that_of_wall_time():
    """Both sides waited for neighbours; of the processor the case took a quarter."""
    contended, slow = (
        replace(measurement([1.0, 1.0], disturbances=["steal 12%"]), cpu_s=(cpu_s, cpu_s))
        for cpu_s in (0.2, 0.8)
    )
    text = tables.terminal(run_file([record(case("bf16"), [(contended, slow)])]))
    [baseline, bf16] = text_rows(text)
    assert (bf16[3], bf16[-1]) == ("~1.00x", "~4.00x")
    assert baseline[-1] == "1,000"  # items: of itself there is no ratio
    assert columns.CPU_LEGEND in text
    quiet = tables.terminal(run_file([record(case("bf16"), [(FASTER, BASELINE)])]))
    assert "CPU speed-up" not in quiet
    loaded = replace(contended, counters=replace(contended.counters, loader_processes=2))
    text = tables.terminal(run_file([record(case("bf16"), [(loaded, slow)])]))
    assert "CPU speed-up" not in text  # its workers' time is not in it


def test_how_much_was_computed_in_16_bits_is_shown_where_anything_was():
    flops = {"bfloat16": 740, "float32": 260}
    mixed = replace(FASTER, counters=replace(FASTER.counters, matmul_flops=flops))
    text = tables.terminal(run_file([record(case("bf16"), [(mixed, BASELINE)])]))
    assert [row[-1] for row in text_rows(text)] == ["0.0%", "74.0%"]
    assert columns.NARROW_LEGEND in text
    assert "16-bit" not in tables.terminal(run_file([record(case("bf16"), [(FASTER, BASELINE)])]))


def test_rounds_of_less_than_a_period_are_told():
    short, whole = timed([0.1] * 5, period=10), timed([0.1] * 10, period=10)
    text = tables.terminal(run_file([record(case("bf16"), [(short, short), (whole, whole)])]))
    assert "1 round left out, measured again: a window that held less than a period" in text
