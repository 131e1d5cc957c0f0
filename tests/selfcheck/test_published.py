"""The reproduction sheet: small shapes measured for real on this CPU, tables and FLOPs by hand."""

import dataclasses

import pytest
import torch

from stepbench.measuring.sweep import this_machine
from stepbench.selfcheck import kernels, published
from stepbench.selfcheck.host_steps import STEPS
from stepbench.selfcheck.journal import read
from stepbench.selfcheck.published import FIGURES, OUT_OF_MEMORY, SMALL, Figure
from tests.extras import needs
from tests.synthetic import MACHINE

BY_ID = {one.id: one for one in FIGURES}
H100 = MACHINE | {"gpus": [{"name": "NVIDIA H100 80GB HBM3", "capability": "9.0"}]}
H200 = MACHINE | {"gpus": [{"name": "NVIDIA H200", "capability": "9.0"}]}


def figure(measure, **other):
    declared = {"id": "toy", "setting": "a test", "value": 8.0, "unit": "x", "source": "a paper"}
    return Figure(**declared | {"unchecked": "nothing", "measure": measure} | other)


def works(value, **parts):
    return {"ours": {"outcome": "works", "seen": {"value": value, "parts": parts}}}


def cells(one, row, machine):
    last = published.table([one], {one.id: row}, machine).splitlines()[-1]
    return [cell.strip() for cell in last.strip("|").split("|")]


@pytest.fixture
def sheet(tmp_path, monkeypatch):
    """Run the module with these figures: the exit code, and the rows that are kept."""
    machine = this_machine()
    monkeypatch.setattr(published, "claimed_machine", lambda: machine)

    def run(*figures, minutes="5"):
        code = published.main(["--results", str(tmp_path), "--minutes", minutes], figures)
        return code, read(tmp_path / "published" / machine["name"] / "sheet.jsonl")

    return run


def test_flops_by_hand():
    assert kernels.product_flops(2, 3, 4) == 48
    assert kernels.product_flops(6144, 17920, 2816) == 620_085_903_360
    assert kernels.attention_flops(1, 2, 3, 5) == 360
    assert kernels.attention_flops(32, 16, 512, 128) == 2**36
    assert kernels.attention_flops(2, 16, 8192, 128) == 2**40


def test_rates_and_ratios_by_hand(monkeypatch):
    cpu = torch.device("cpu")
    seconds = iter([0.5, 0.022, 0.008])
    monkeypatch.setattr(kernels, "run_s", lambda run, device: next(seconds))
    rate = BY_ID["product"].measure(cpu, 32)
    assert rate["value"] == pytest.approx(2 * 192 * 560 * 88 / 0.5 / 1e12)
    adam = BY_ID["fused Adam"].measure(cpu, 1024)
    assert adam == {"value": pytest.approx(2.75), "parts": {"ms foreach": 22.0, "ms fused": 8.0}}
    monkeypatch.setattr(kernels, "host_to_device", lambda device, pinned: 5e10 if pinned else 2e10)
    assert BY_ID["pinned copies"].measure(cpu, 1)["value"] == 2.5


def test_attention_is_run_by_the_kernel_that_is_named(monkeypatch):
    called = []

    def profiled(run, device):
        with torch.profiler.profile() as seen:
            run()
        called.append({one.name for one in seen.events()})
        return 1.0

    monkeypatch.setattr(kernels, "run_s", profiled)
    for kernel in ("standard", "flash"):
        BY_ID[f"attention {kernel} 512"].measure(torch.device("cpu"), 32)
    standard, flash = called
    assert "aten::_scaled_dot_product_attention_math" in standard
    assert any("_scaled_dot_product_flash_attention" in name for name in flash)


def test_small_shapes_are_measured_for_real_and_gone_on_with(sheet, capsys):
    some = [BY_ID[name] for name in ("product", "attention flash 512", "attention cudnn 512")]
    assert sheet(*some, minutes="0") == (published.OUT_OF_TIME, [])
    code, rows = sheet(*some)
    assert code == 0
    assert [row["ours"]["outcome"] for row in rows] == ["works", "works", "not here"]
    assert all(row["ours"]["seen"]["value"] > 0 for row in rows[:2])
    assert [row["published"]["value"] for row in rows] == [792.0, 309.0, None]
    assert {row["sizes_divided_by"] for row in rows} == {32}
    told = capsys.readouterr().out.splitlines()[-3:]
    assert all(SMALL in line and line.split("|")[4].strip() == "" for line in told)
    assert "not here: there is no NVIDIA GPU" in told[2]
    assert len(sheet(*some)[1]) == 4  # what has a figure is not measured again


@needs("torchao")
def test_both_linear_layers_run_forward_and_backward(sheet):
    code, [row] = sheet(BY_ID["fp8 linear 1024x2048x1024"])
    assert code == 0, row
    seen = row["ours"]["seen"]
    bf16, fp8 = seen["parts"]["ms bf16"], seen["parts"]["ms fp8"]
    assert seen["value"] == pytest.approx(bf16 / fp8)


def test_running_out_of_memory_is_a_figure_and_an_error_is_none(sheet, capsys):
    def greedy(device, smaller):
        raise torch.OutOfMemoryError("on purpose")

    def broken(device, smaller):
        raise RuntimeError("broken on purpose")

    code, rows = sheet(figure(greedy, id="greedy"), figure(broken, id="broken"))
    assert code == 1
    assert rows[0]["ours"]["seen"]["value"] == OUT_OF_MEMORY
    assert rows[1]["ours"]["outcome"] == "does not"
    assert "broken on purpose" in rows[1]["ours"]["traceback"]
    assert "broken on purpose" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("machine", "other", "ratio", "label"),
    [
        (H100, {}, "0.50", ""),
        (H200, {}, "0.50", "another card"),
        (H100, {"card": "A100"}, "0.50", "ratio only"),
        (H100, {"same_setting": False}, "", "not the same setting"),
        (H100, {"value": None}, "", ""),
        (H100, {"value": OUT_OF_MEMORY}, "", ""),
        (MACHINE | {"gpus": []}, {}, "", SMALL),
    ],
)
def test_a_line_of_the_table_by_hand(machine, other, ratio, label):
    one = figure(None, **other)
    told = cells(one, works(4.0, ms=2.0), machine)
    words = {None: "", OUT_OF_MEMORY: OUT_OF_MEMORY}.get(one.value, "8 x")
    assert told == ["toy", words, "4 x (2 ms)", ratio, one.card, "a test", label]


def test_out_of_memory_is_told_in_the_table():
    assert cells(figure(None), works(OUT_OF_MEMORY), H100)[2:4] == [OUT_OF_MEMORY, ""]


def test_every_figure_is_declared_once_with_its_source():
    assert len(BY_ID) == len(FIGURES)
    for one in FIGURES:
        told = one.told()
        assert all(told[name] for name in ("setting", "unit", "source", "card", "unchecked"))
        assert {*told, "measure", "not_here", "deadline_s"} == {
            field.name for field in dataclasses.fields(one)
        }


def test_the_host_measures_them_after_the_null_pairs(tmp_path):
    names = [step.name for step in STEPS]
    at = names.index("published")
    assert (names[at - 1], names[at + 1]) == ("null-pairs", "catalogue")
    for has_gpu in (True, False):
        command = STEPS[at].command(has_gpu=has_gpu, results=tmp_path, commit="abc", seconds=90)
        assert command[:2] == ["-m", "stepbench.selfcheck.published"]
        assert command[2:] == ["--results", str(tmp_path), "--minutes", "1.00"]
