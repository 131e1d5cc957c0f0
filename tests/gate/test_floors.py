"""Claims judged by hand-made figures: which side of the floor they lie on, and what is refused."""

from dataclasses import replace

import pytest

from stepbench.errors import StepbenchError
from stepbench.records.outcome import Outcome
from stepbench.stats import measures
from stepbench.thresholds.asked import Asked, Elsewhere
from stepbench.thresholds.asserted import Floor
from stepbench.thresholds.floors import Speeds, judge, told
from stepbench.thresholds.live import STAGES
from tests.synthetic import MACHINE, MIB, OK, case, measurement, record

CASE = case("bf16")
BASE = measurement(peak_bytes=100 * MIB)
GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * 2**30}
GPU_MACHINE = MACHINE | {"name": "1x-nvidia-h100-80gb-hbm3", "gpus": [GPU]}


class Given:
    """A source with these speed ratios in the stages in which they come; one exact round."""

    machine = MACHINE

    def __init__(self, *stages, disturbed=0, measured=BASE, outcome=OK):
        self.stages, self.seen, self.disturbed = [list(one) for one in stages], [], disturbed
        self.known = record(CASE, [(measured, BASE)] if outcome is OK else [], outcome=outcome)

    def record(self, case):
        return self.known

    def speeds(self, case):
        return Speeds(ratios=tuple(self.seen), disturbed=self.disturbed, called="pair")

    def measure_more(self, case):
        if not self.stages:
            return False
        self.seen += self.stages.pop(0)
        return True

    def provenance(self, case):
        return "made by hand"


def verdict(floor, source):
    (claim,) = floor.claims
    return judge(claim, CASE, source)


def speed(source, **bounds):
    return verdict(Floor("bf16").speed(**bounds), source)


@pytest.mark.parametrize(
    ("bounds", "kind"),
    [
        ({"at_least": 1.4}, "holds"),
        ({"at_least": 1.5}, "holds"),  # the interval touches the floor from its side
        ({"at_least": 1.7}, "inconclusive"),
        ({"at_least": 2.0}, "inconclusive"),
        ({"at_least": 2.1}, "fails"),
        ({"at_most": 2.0}, "holds"),
        ({"at_most": 1.7}, "inconclusive"),
        ({"at_most": 1.4}, "fails"),
        ({"at_least": 1.4, "at_most": 2.1}, "holds"),
        ({"at_least": 1.6, "at_most": 1.9}, "inconclusive"),
        ({"at_least": 2.1, "at_most": 3.0}, "fails"),
    ],
)
def test_the_whole_interval_decides(bounds, kind):
    found = speed(Given([1.5, 1.6, 1.7, 1.8, 1.9, 2.0]), **bounds)
    assert found.kind == kind
    assert found.figures == "1.75x [1.5, 2]"
    assert found.taken_from == "6 pairs"


def test_fewer_than_six_pairs_never_decide():
    found = speed(Given([9.0] * 5, disturbed=2), at_least=1.5)
    assert found.kind == "inconclusive"
    assert found.taken_from == "7 pairs, 2 disturbed left out"
    assert found.reason == "an interval needs 6 undisturbed pairs, there are 5 of 7"


def test_more_pairs_are_asked_for_only_while_it_cannot_be_told():
    unclear, clear = [1.4, 1.6, 1.4, 1.6, 1.4, 1.6], [1.6] * 14
    source = Given(unclear, clear, [1.0] * 20)
    found = speed(source, at_least=1.5)
    assert found.kind == "holds"
    assert found.taken_from == "20 pairs"
    assert source.stages == [[1.0] * 20]


def test_a_case_that_breaks_while_it_is_paired_is_not_measured_again():
    class Breaks(Given):
        def measure_more(self, case):
            self.known = replace(self.known, outcome=Outcome(kind="failed", reason="it broke"))
            return super().measure_more(case)

    source = Breaks([1.0], [1.0])
    found = speed(source, at_least=1.5)
    assert (found.kind, found.reason) == ("fails", "failed: it broke")
    assert source.stages == [[1.0]]


def test_a_technique_at_its_floor_is_judged_wrongly_in_4_percent():
    """Exact: each pair lies above or below the floor like a coin."""
    least = {n: int(measures.estimate(list(range(1, n + 1))).low) for n in STAGES}
    undecided, wrong, pairs = {0: 1.0}, 0.0, 0  # {pairs below the floor: probability}
    for stage, fewest in least.items():
        for _ in range(stage - pairs):
            undecided = {
                below: (undecided.get(below, 0.0) + undecided.get(below - 1, 0.0)) / 2
                for below in range(max(undecided) + 2)
            }
        pairs = stage
        wrong += sum(chance for below, chance in undecided.items() if stage - below < fewest)
        undecided = {
            below: chance
            for below, chance in undecided.items()
            if fewest <= below and fewest <= stage - below
        }
    assert wrong == pytest.approx(0.0415, abs=0.0001)


@pytest.mark.parametrize(
    ("floor", "kind", "figures"),
    [
        (Floor("bf16").memory(at_most=0.6), "holds", "0.6x"),
        (Floor("bf16").memory(at_most=0.59), "fails", "0.6x"),
        # 10 MiB of parameters and 10 of optimizer state: 40 of 80 MiB remain.
        (Floor("bf16").working_memory(at_most=0.5), "holds", "0.5x"),
        (Floor("bf16").ratio("flops", at_least=1, at_most=1), "holds", "1x"),
        (Floor("bf16").count("aten.mm", at_least=11), "fails", "10"),
        (Floor("bf16").count("aten.conv", at_most=0), "holds", "0"),
    ],
)
def test_bytes_and_counts_are_judged_by_one_round(floor, kind, figures):
    disturbed = measurement(peak_bytes=60 * MIB, disturbances=["somebody"])
    found = verdict(floor, Given(measured=disturbed))
    assert (found.kind, found.figures, found.taken_from) == (kind, figures, "1 round")


def test_rounds_that_disagree_about_bytes_cannot_tell():
    source = Given()
    pairs = [(measurement(peak_bytes=size * MIB), BASE) for size in (50, 70)]
    source.known = record(CASE, pairs)
    found = verdict(Floor("bf16").memory(at_most=0.6), source)
    assert (found.kind, found.figures) == ("inconclusive", "0.5x to 0.7x")


@pytest.mark.parametrize(
    ("outcome", "kind", "reason"),
    [
        (Outcome(kind="unsupported", reason="needs a GPU"), "unsupported", "needs a GPU"),
        (
            Outcome(kind="oom", phase="forward", reason="2 GiB"),
            "fails",
            "oom in forward: 2 GiB",
        ),
        (Outcome(kind="invalid", reason="loss off"), "fails", "invalid: loss off"),
        (Outcome(kind="failed", reason="killed"), "fails", "failed: killed"),
    ],
)
def test_a_case_without_a_number(outcome, kind, reason):
    found = speed(Given(outcome=outcome), at_least=1.5)
    assert (found.kind, found.reason, found.figures) == (kind, reason, "")


def test_counters_as_numbers():
    counters = replace(BASE.counters, recomputed_blocks=(3, 2), operators={"aten.mm": 7, "a.b": 1})
    source = Given(measured=replace(BASE, counters=counters))
    for name, number in (("recomputed_blocks", 2), ("operators", 8), ("a.b", 1)):
        floor = Floor("bf16").count(name, at_least=number, at_most=number)
        assert (verdict(floor, source).kind, verdict(floor, source).figures) == (
            "holds",
            str(number),
        )


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (lambda: Floor("bf16").speed(), "bf16: speed claims nothing; give at_least="),
        (lambda: Floor("bf16").speed(at_least=0), "bf16: speed at_least=0: a bound is a number"),
        (lambda: Floor("bf16").memory(at_most=-1), "at_most=-1: a bound is a number above 0"),
        (lambda: Floor("bf16").memory(at_most=float("nan")), "at_most=nan"),
        (lambda: Floor("bf16").memory(at_most="0.6"), "at_most='0.6'"),
        (lambda: Floor("bf16").count("flops", at_least=0), "at_least=0: a bound is a number"),
        (lambda: Floor("bf16").speed(at_least=2, at_most=1), "at_least=2 is more than at_most=1"),
        (lambda: Floor("bf16").ratio("flop", at_most=1), "'flop' is not a counter; there are"),
    ],
)
def test_mistakes_in_a_claim(mistake, told):
    with pytest.raises(StepbenchError, match=r"^[^\n]+$") as error:
        mistake()
    assert told in str(error.value)


def test_nothing_is_a_multiple_of_zero():
    floor = Floor("ckpt1").ratio("recomputed_blocks", at_least=2)
    with pytest.raises(StepbenchError, match=r"\.count\('recomputed_blocks', …\)"):
        verdict(floor, Given())


def test_the_block_has_a_line_a_claim():
    floor = Floor("bf16").speed(at_least=1.5).memory(at_most=0.5)
    source = Given([2.0] * 6)
    verdicts = [judge(claim, CASE, source) for claim in floor.claims]
    lines = told(verdicts, "gpt-1m", source, [CASE]).splitlines()
    assert lines[0] == ("gpt-1m on test-cpu-2-cores: Test CPU (AVX2), 2 cores, 8 GiB, no GPU")
    assert lines[1] == "made by hand"
    cells = [line.split("  ") for line in lines[-2:]]
    assert [[cell.strip() for cell in line if cell.strip()] for line in cells] == [
        ["bf16", "speed", "2x [2, 2]", "6 pairs", "at least 1.5x", "holds"],
        ["bf16", "memory", "1x", "1 round", "at most 0.5x", "FAILS"],
    ]


@pytest.mark.parametrize(
    ("wanted", "machine", "fits"),
    [
        (None, MACHINE, True),
        ("cpu", MACHINE, True),
        ("cuda", MACHINE, False),
        ("test-cpu-2-cores", MACHINE, True),
        ("cpu", GPU_MACHINE, False),
        ("cuda", GPU_MACHINE, True),
        ("H100", GPU_MACHINE, True),
        ("nvidia h100", GPU_MACHINE, True),
        ("H10", GPU_MACHINE, False),
        ("A100", GPU_MACHINE, False),
    ],
)
def test_which_machine_fits(wanted, machine, fits):
    assert Asked(machine=wanted).fits_machine(machine) is fits


def test_elsewhere_names_both():
    with pytest.raises(Elsewhere, match=r"asks for the machine H100; this is test-cpu-2-cores"):
        Asked(machine="H100").require(MACHINE, "2.13.0+cpu")
    with pytest.raises(Elsewhere, match=r"asks for torch >=2.14; this is torch 2.13.0\+cpu"):
        Asked(torch=">=2.14").require(MACHINE, "2.13.0+cpu")
    Asked(torch="==2.13.*").require(MACHINE, "2.13.0+cpu")
