"""What no clock touches: differences of counts and bytes, by figures made by hand."""

from dataclasses import replace

import pytest

from stepbench.comparable import difference
from stepbench.errors import StepbenchError
from stepbench.gate.counters import compared, differences, tally
from stepbench.records.verdict import Tally
from tests.synthetic import MIB, measurement


def counting(**changes):
    one = measurement()
    return replace(one, counters=replace(one.counters, **changes))


def test_equal_sides_do_not_differ():
    assert differences(tally([measurement()] * 3), tally([measurement()] * 3)) == ()


def test_one_operator_more_is_worse_and_named():
    old, new = counting(operators={"aten.mm": 10}), counting(operators={"aten.mm": 11, "aten.t": 2})
    [one] = differences(tally([old]), tally([new]))
    assert (one.figure, one.change, one.old, one.new) == ("operators", "worse", 10, 13)
    assert one.detail == ("aten.t: 0 -> 2 (+2)", "aten.mm: 10 -> 11 (+1)")
    [back] = differences(tally([new]), tally([old]))
    assert back.change == "better"


def test_another_operator_in_its_place_is_a_change():
    old, new = counting(operators={"aten.mm": 10}), counting(operators={"aten.addmm": 10})
    [one] = differences(tally([old]), tally([new]))
    assert (one.change, one.old, one.new) == ("changed", 10, 10)


def test_flops_are_told_by_the_type_of_their_inputs():
    old = counting(flops=30, matmul_flops={"float32": 10, "bfloat16": 20})
    new = counting(flops=30, matmul_flops={"float32": 30})
    [one] = differences(tally([old]), tally([new]))
    assert (one.figure, one.change) == ("flops", "changed")
    assert "float32: 10 -> 30 (+20)" in one.detail


def test_a_long_diff_ends_with_how_many_more():
    old = counting(operators={f"aten.op{n}": 1 for n in range(12)})
    new = counting(operators={f"aten.op{n}": 2 for n in range(12)})
    [one] = differences(tally([old]), tally([new]))
    assert len(one.detail) == 9
    assert one.detail[-1] == "and 4 more"


def test_bytes_are_told_by_category():
    new = measurement(peak_bytes=101 * MIB)
    told = {one.figure: one for one in differences(tally([measurement()]), tally([new]))}
    assert set(told) == {"build_peak", "first_step_peak", "steady_peak"}
    assert told["steady_peak"].new - told["steady_peak"].old == MIB
    [line] = told["steady_peak"].detail
    assert line.startswith("beyond parameters and optimizer state: ")
    assert line.endswith(f"(+{MIB:,})")


@pytest.mark.parametrize(
    ("old_bytes", "new_bytes", "changes"),
    [
        ((1000, 1010), (1021, 1021), ["worse"] * 3),  # beyond both ranges, by more than their width
        ((1000, 1010), (1020, 1020), []),
        ((1000, 1010), (1005, 1040), []),  # the ranges overlap
        ((1000, 1010), (980, 989), ["better"] * 3),
    ],
)
def test_bytes_count_beyond_their_own_spread(old_bytes, new_bytes, changes):
    sides = [
        tally([measurement(peak_bytes=size) for size in sizes]) for sizes in (old_bytes, new_bytes)
    ]
    assert [one.change for one in differences(*sides)] == changes


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ([(5.0, 4.0)] * 3, [(5.0, 4.0)] * 3, None),
        ([(5.0, 4.0)] * 3, [(5.0, 4.0000001)] * 3, "changed"),  # one bit is seen, and explained
        ([(5.0, 4.0)] * 3, [(5.0, 4.01)] * 3, "beyond tolerance"),
        ([(5.0, 4.0), (5.0, 4.02)], [(5.0, 4.03)] * 2, None),  # less than a side's own spread
        ([(5.0, 4.0), (5.0, 4.02)], [(5.0, 4.05)] * 2, "beyond tolerance"),
    ],
)
def test_a_loss_counts_beyond_its_own_spread_and_fails_beyond_rounding(old, new, change):
    sides = [tally([measurement(losses=one) for one in losses]) for losses in (old, new)]
    told = differences(*sides)
    assert [one.change for one in told] == ([change] if change else [])
    if change:
        [one] = told
        assert (one.figure, one.new) == ("loss", max(values[1] for values in new))
        assert "at step 2, where it is most" in one.detail[0]


def test_how_training_drifts_is_told_and_a_wrong_update_fails():
    old = replace(measurement(), same_parameter_steps=1, descents=(-0.1,))

    def told(**changes):
        found = differences(tally([old]), tally([replace(old, **changes)]))
        return [(one.figure, one.change) for one in found]

    assert told(losses=(5.0, 9.0)) == [("loss_after_updates", "changed")]
    assert told(losses=(6.0, 4.0)) == [("loss", "beyond tolerance")]
    assert told(descents=(-0.2,)) == [("update", "beyond tolerance")]


def test_what_a_technique_rounds_explains_more():
    new = replace(measurement(losses=(5.0, 4.01)), loss_tolerance=1e-2)
    [one] = differences(tally([measurement()]), tally([new]))
    assert one.change == "changed"


def test_what_is_compared_is_what_both_sides_have():
    whole = tally([measurement()])
    assert compared(whole, whole)[-4:] == (
        *("loss", "gradient_norm"),
        *("update", "loss_after_updates"),
    )
    old = Tally.from_json({**whole.to_json(), "least_values": {}, "most_values": {}})
    assert "loss" not in compared(old, whole)
    assert differences(old, tally([measurement(losses=(9.0, 9.0))])) == ()


def test_counts_that_do_not_repeat_are_no_tally():
    with pytest.raises(StepbenchError, match="differed between processes"):
        tally([measurement(), counting(flops=1)])


def test_what_forbids_comparing_is_named_with_both_values():
    old = measurement()
    new = replace(old, environment={**old.environment, "data_digest": "abc"})
    assert difference(tally([old]).alike, tally([old]).alike) is None
    assert difference(tally([old]).alike, tally([new]).alike) == "data_digest: None against abc"


def test_a_tally_survives_json():
    one = tally([measurement()])
    assert Tally.from_json(one.to_json()) == one


def test_keys_on_disk_are_those_of_accepted_counters():
    """A metric may be renamed in the code; a project's accepted counters may not."""
    one = tally([replace(measurement(), growth_bytes_per_step=0.0)])
    assert tuple(one.counts) == ("operators", "flops", "recomputed_products")
    judged = ("growth_per_step", "build_peak", "first_step_peak", "steady_peak")
    parts = ("parameters", "gradients", "optimizer_state", "activations_and_temporaries")
    assert tuple(one.most_bytes) == (*judged, "saved_for_backward", *parts)
    assert tuple(one.most_values) == ("loss", "gradient_norm", "update", "loss_after_updates")


def test_what_one_process_did_not_observe_is_not_compared():
    told = replace(measurement(), growth_bytes_per_step=0.0)
    some = tally([told, measurement()])
    assert "growth_per_step" not in some.least_bytes
    assert "growth_per_step" not in compared(tally([told]), some)
    assert differences(tally([told]), some) == ()
