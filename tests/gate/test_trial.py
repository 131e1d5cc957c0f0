"""A case through the stages, over pairs made by hand: verdicts, and what is dropped from them."""

import math
from dataclasses import replace

import pytest

from stepbench.gate import gate as judging_gate
from stepbench.gate.gate import Session, Terms
from stepbench.gate.trees import Tree
from stepbench.measuring.pairs import PairFailed
from stepbench.records.outcome import Outcome
from stepbench.records.pair import Block, Pair
from stepbench.records.verdict import JUDGED, CaseVerdict, Gate
from stepbench.report import gate_tables
from tests.synthetic import MACHINE, case, measurement

# Pairs of equal sides: ±1% with no direction in any of the stages.
NOISE = [0.01, -0.011, 0.012, -0.013, 0.014, -0.015]
CROWD = ("other processes left too few processors",)
DEFAULTS = Terms()


def a_pair(cpu: float, wall: float | None = None, disturbances=(), device="cpu"):
    slow_cpu, slow_wall = math.exp(cpu), math.exp(cpu if wall is None else wall)
    return Pair(
        method="ping-pong",
        order="reference first",
        device=device,
        reference=(Block(step_s=(1.0,), cpu_s=(1.0,)),),
        candidate=(Block(step_s=(slow_wall,), cpu_s=(slow_cpu,)),),
        stolen_share=0.0,
        foreign_cores=0.0,
        disturbances=disturbances,
    )


class PairedRunner:
    """In place of real fork servers: pairs from `pairs(index)`, measurements from `measured`."""

    def __init__(self, pairs, measured):
        self.pairs, self.measured, self.asked, self.began = pairs, measured, 0, []

    def start(self, begins="reference first"):
        self.began.append(begins[0])
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def turn_to(self, reference, candidate):
        self.case = candidate

    def measurement(self, role):
        found = self.measured[role]
        if isinstance(found, Outcome):
            raise PairFailed(role, found)
        return found

    def pair(self, method, order):
        self.asked += 1
        found = self.pairs(self.asked - 1)
        if isinstance(found, Exception):
            raise found
        return found


def judged(
    monkeypatch, pairs, reference=None, candidate=None, cases=("bf16",), terms=DEFAULTS
) -> Gate:
    measured = {
        "reference": reference or measurement(),
        "candidate": candidate or measurement(),
    }
    runner = PairedRunner(pairs, measured)
    monkeypatch.setattr(Session, "_start", runner.start)
    trees = [Tree(folder=None, name=name) for name in ("old", "new")]
    session = Session(*trees, [case(name) for name in cases], MACHINE, terms=terms)
    session.run()
    result = session.told()
    assert Gate.from_json(result.to_json()) == result
    return result


def only(gate: Gate) -> CaseVerdict:
    [one] = gate.cases
    return one


def gate_of(one: CaseVerdict) -> Gate:
    return Gate(
        reference="old",
        candidate="new",
        started_at="2026-01-31T12:00:00+00:00",
        machine=MACHINE,
        torch="2.13.0",
        measure_version=2,
        timed=True,
        cases=(one,),
    )


def stages(one: CaseVerdict) -> dict[str, int]:
    counted = [pair.stage for pair in one.time.pairs]
    return {stage: counted.count(stage) for stage in dict.fromkeys(counted)}


def test_equal_sides_stop_after_six_pairs(monkeypatch):
    gate = judged(monkeypatch, lambda index: a_pair(NOISE[index]))
    one = only(gate)
    assert (one.verdict, stages(one), gate.exit_code) == ("none", {"screen": 6}, 0)
    assert 0.01 < one.time.smallest_seen < 0.08


def test_a_slowdown_is_suspected_in_twenty_and_confirmed_in_twelve(monkeypatch):
    gate = judged(monkeypatch, lambda index: a_pair(0.05 + NOISE[index % 6]))
    one = only(gate)
    assert (one.verdict, gate.exit_code) == ("regression", 1)
    assert stages(one) == {"screen": 6, "measure": 14, "confirm": 12}
    assert one.time.estimate == pytest.approx(0.05, abs=0.002)
    assert one.time.p == 3 * 2**-20  # every pair is slower, and there are three metrics


def test_every_two_pairs_both_interpreters_start_anew_in_balanced_order(monkeypatch):
    runner = PairedRunner(lambda index: a_pair(0.05 + NOISE[index % 6]), {})
    monkeypatch.setattr(
        runner, "measured", dict.fromkeys(("reference", "candidate"), measurement())
    )
    monkeypatch.setattr(Session, "_start", runner.start)
    Session(Tree(folder=None, name="a"), Tree(folder=None, name="b"), [case()], MACHINE).run()
    assert runner.asked == 32
    # One start for the counters, 3 for the screen, 7 more to measure, 6 to confirm.
    assert "".join(runner.began) == "r" + "rcc" + "rrccrrc" + "crrccr"


def test_what_fresh_pairs_do_not_show_is_suspect(monkeypatch):
    gate = judged(monkeypatch, lambda index: a_pair((0.05 if index < 20 else 0) + NOISE[index % 6]))
    assert (only(gate).verdict, gate.exit_code) == ("suspect", 0)


def test_an_effect_below_the_minimum_is_none_unless_a_counter_explains_it(monkeypatch):
    def pairs(index):
        return a_pair(0.015 + NOISE[index % 6] / 10)

    one = only(judged(monkeypatch, pairs))
    assert (one.verdict, stages(one)) == ("none", {"screen": 6, "measure": 14})
    assert one.time.minimum_effect == math.log1p(0.02)
    smaller = only(judged(monkeypatch, pairs, candidate=measurement(peak_bytes=99 * 2**20)))
    assert smaller.time.minimum_effect == math.log1p(0.01)
    assert smaller.time.verdict == "regression"


def test_an_improvement_is_the_mirror_image(monkeypatch):
    gate = judged(monkeypatch, lambda index: a_pair(-0.05 + NOISE[index % 6]))
    one = only(gate)
    assert (one.verdict, gate.exit_code) == ("improvement", 0)
    assert stages(one) == {"screen": 6, "measure": 14, "confirm": 12}
    assert one.time.estimate == pytest.approx(-0.05, abs=0.002)


def test_waiting_is_found_by_wall_time(monkeypatch):
    one = only(judged(monkeypatch, lambda index: a_pair(NOISE[index % 6], 0.1 + NOISE[index % 6])))
    assert (one.verdict, one.time.figure) == ("regression", "wall_total")


def test_disturbed_pairs_are_measured_again_and_lose_their_wall_time(monkeypatch):
    one = only(
        judged(
            monkeypatch,
            # Whoever is slower: every third pair is disturbed, and its wall time nonsense.
            lambda index: (
                a_pair(NOISE[index % 6], 5 * (-1) ** index, CROWD)
                if index % 3 == 0
                else a_pair(NOISE[index % 6])
            ),
        )
    )
    assert one.verdict == "none"
    assert stages(one)["screen"] == 9  # six of them undisturbed
    assert sum(bool(one.pair.discarded) for one in one.time.pairs if one.stage == "screen") == 3
    screen = {note.figure: note.pairs for note in one.time.weighed if note.stage == "screen"}
    assert screen == {"cpu_quartile": 9, "cpu_total": 9, "wall_total": 6}


def test_a_crowded_machine_leaves_cpu_time_to_judge(monkeypatch):
    one = only(judged(monkeypatch, lambda index: a_pair(0.05 + NOISE[index % 6], 3.0, CROWD)))
    assert (one.verdict, one.time.figure) == ("regression", "cpu_quartile")
    assert stages(one) == {"screen": 9, "measure": 21, "confirm": 18}
    assert {note.figure for note in one.time.weighed} == {"cpu_quartile", "cpu_total"}


def test_too_few_undisturbed_pairs_are_not_enough_data(monkeypatch):
    gate = judged(monkeypatch, lambda index: a_pair(0.3, 0.3, CROWD, device="cuda"))
    assert (only(gate).verdict, gate.exit_code) == ("not enough data", 0)
    assert only(gate).time.reason.startswith("9 of 9 pairs were disturbed")


def test_a_slowdown_that_too_few_pairs_could_confirm_is_suspect(monkeypatch):
    one = only(
        judged(
            monkeypatch,
            lambda index: a_pair(
                0.05 + NOISE[index % 6], disturbances=CROWD if index >= 20 else (), device="cuda"
            ),
        )
    )
    assert one.verdict == "suspect"
    assert "time was not confirmed: 18 of 18 pairs were disturbed" in gate_tables.terminal(
        gate_of(one)
    )


def test_a_side_that_dies_among_pairs_is_not_enough_data(monkeypatch):
    dead = PairFailed("candidate", Outcome(kind="oom", reason="no room for two"))
    gate = judged(monkeypatch, lambda index: a_pair(0.0) if index < 3 else dead)
    assert only(gate).verdict == "not enough data"
    assert only(gate).time.reason == "candidate: oom: no room for two"
    assert len(only(gate).time.pairs) == 3  # what was measured is kept


OOM = Outcome(kind="oom", reason="too large", phase="backward")
NOT_HERE = Outcome(kind="unsupported", reason="tf32 needs an NVIDIA GPU")


@pytest.mark.parametrize(
    ("reference", "candidate", "verdict", "code"),
    [
        (None, OOM, "regression", 1),
        (OOM, None, "works again", 0),
        (OOM, OOM, "failed", 2),
        (NOT_HERE, NOT_HERE, "unsupported", 0),
    ],
)
def test_a_case_that_fails_on_one_side_is_said_so(monkeypatch, reference, candidate, verdict, code):
    gate = judged(monkeypatch, None, reference, candidate)
    assert (only(gate).verdict, gate.exit_code, only(gate).time) == (verdict, code, None)


def test_unlike_sides_are_refused_by_the_key(monkeypatch):
    gate = judged(monkeypatch, None, candidate=measurement(torch="2.14.0"))
    assert only(gate).refused == "torch: 2.13.0+cpu against 2.14.0"
    assert (only(gate).verdict, gate.exit_code) == ("refused", 2)


def test_more_memory_is_a_regression_though_time_is_equal(monkeypatch):
    gate = judged(
        monkeypatch,
        lambda index: a_pair(NOISE[index % 6]),
        candidate=measurement(peak_bytes=101 * 2**20),
    )
    assert (only(gate).verdict, only(gate).time.verdict, gate.exit_code) == (
        "regression",
        "none",
        1,
    )


HEAVIER = measurement(peak_bytes=101 * 2**20)


def test_no_time_is_measured_once_counters_have_decided(monkeypatch):
    gate = judged(monkeypatch, None, candidate=HEAVIER, terms=Terms(fail_fast=True))
    assert (only(gate).verdict, only(gate).time.pairs, gate.exit_code) == ("regression", (), 1)
    assert "time was not judged: counters had decided before" in gate_tables.terminal(gate)


def test_what_is_intended_is_told_and_fails_nothing(monkeypatch):
    candidate = measurement(peak_bytes=101 * 2**20, losses=[6.0, 4.0])
    peaks = ("build_peak", "first_step_peak", "steady_peak")
    terms = Terms(time="off", intended=("loss", *peaks))
    gate = judged(monkeypatch, None, candidate=candidate, terms=terms)
    assert (only(gate).verdict, gate.exit_code) == ("none", 0)
    text = gate_tables.terminal(gate)
    assert "loss beyond tolerance (intended): 5 -> 6 (+1)" in text
    assert "steady peak +1.00 MiB (intended)" in text
    partly = judged(monkeypatch, None, candidate=candidate, terms=replace(terms, intended=peaks))
    assert (only(partly).verdict, partly.exit_code) == ("changed", 1)


def test_every_figure_that_is_judged_can_be_intended(monkeypatch):
    gate = judged(monkeypatch, None, candidate=HEAVIER, terms=Terms(time="off"))
    assert set(only(gate).compared) | {"growth_per_step"} == set(JUDGED)


def test_equal_counters_leave_time_to_measure(monkeypatch):
    gate = judged(
        monkeypatch, lambda index: a_pair(NOISE[index]), terms=Terms(fail_fast=True, strict=True)
    )
    assert (only(gate).verdict, gate.exit_code) == ("none", 0)


def test_what_the_minutes_do_not_reach_is_not_enough_data(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(judging_gate.time, "monotonic", lambda: now[0])

    def pairs(index):
        now[0] += 60.0
        return a_pair(0.05 + NOISE[index % 6])

    for strict, code in ((False, 0), (True, 3)):
        now[0] = 0.0
        terms = Terms(minutes=3, strict=strict)
        gate = judged(monkeypatch, pairs, cases=("bf16", "accum2"), terms=terms)
        assert [one.verdict for one in gate.cases] == ["not enough data"] * 2
        assert [len(one.time.pairs) for one in gate.cases] == [4, 0]
        assert gate.exit_code == code
        assert (
            "time was not judged: the 3 minutes that were allowed were over"
            in gate_tables.terminal(gate)
        )


def test_no_interpreter_is_started_for_a_case_that_minutes_do_not_reach(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(judging_gate.time, "monotonic", lambda: now[0])

    def pairs(index):
        now[0] = 600.0
        return a_pair(NOISE[0])

    runner = PairedRunner(pairs, {"reference": measurement(), "candidate": measurement()})
    monkeypatch.setattr(Session, "_start", runner.start)
    trees = [Tree(folder=None, name=name) for name in ("old", "new")]
    Session(*trees, [case("bf16"), case("accum2")], MACHINE, terms=Terms(minutes=3)).run()
    assert len(runner.began) == 2  # to count both cases, and for the first one's pairs


def test_minutes_that_end_before_a_case_was_counted_leave_it_undecided(monkeypatch):
    now = iter(range(0, 6000, 100))
    monkeypatch.setattr(judging_gate.time, "monotonic", lambda: next(now))
    gate = judged(
        monkeypatch, None, cases=("bf16", "accum2"), terms=Terms(time="off", minutes=2, strict=True)
    )
    assert [one.verdict for one in gate.cases] == ["none", "not enough data"]
    assert gate.exit_code == 3
    assert "not judged: the 2 minutes that were allowed were over" in gate_tables.terminal(gate)


def test_minutes_that_end_before_the_fresh_pairs_leave_a_suspect(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(judging_gate.time, "monotonic", lambda: now[0])

    def pairs(index):
        now[0] = 60.0 * (index >= 22)
        return a_pair(0.05 + NOISE[index % 6])

    gate = judged(monkeypatch, pairs, terms=Terms(minutes=0.5, strict=True))
    assert (only(gate).verdict, stages(only(gate))["confirm"]) == ("suspect", 3)
    assert gate.exit_code == 3


def test_advisory_time_is_shown_and_fails_nothing(monkeypatch):
    slower = lambda index: a_pair(0.05 + NOISE[index % 6])  # noqa: E731
    gate = judged(monkeypatch, slower, terms=Terms(time="advisory", strict=True))
    assert (only(gate).verdict, only(gate).time.verdict) == ("slower, advisory", "regression")
    assert gate.exit_code == 0
    heavier = judged(
        monkeypatch, slower, candidate=HEAVIER, terms=Terms(time="advisory", fail_fast=False)
    )
    assert (only(heavier).verdict, heavier.exit_code) == ("regression", 1)


def test_the_reference_is_asked_once_where_the_candidate_fails(monkeypatch):
    asked = []

    class Asked(PairedRunner):
        def measurement(self, role):
            asked.append(role)
            return super().measurement(role)

    runner = Asked(None, {"reference": measurement(), "candidate": OOM})
    monkeypatch.setattr(Session, "_start", runner.start)
    lines = []
    trees = [Tree(folder=None, name=name) for name in ("old", "new")]
    session = Session(*trees, [case()], MACHINE, tell=lines.append)
    session.run()
    assert asked == ["candidate", "reference"]
    assert lines[1].endswith("baseline: candidate: oom in backward: too large")
    assert session.told().exit_code == 1


def test_what_a_person_stops_is_not_called_equal(monkeypatch):
    def pairs(index):
        raise KeyboardInterrupt

    runner = PairedRunner(pairs, {"reference": measurement(), "candidate": measurement()})
    monkeypatch.setattr(Session, "_start", runner.start)
    trees = [Tree(folder=None, name=name) for name in ("old", "new")]
    session = Session(*trees, [case()], MACHINE)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert only(session.told()).verdict == "not enough data"


def test_one_weak_slowdown_among_many_cases_is_a_false_discovery(monkeypatch):
    # Ranks 8, 9 and 11 of 20 point the other way: p = 0.00136, times three metrics.
    values = [(20 + rank) / 1000 * (-1 if rank in (8, 9, 11) else 1) for rank in range(1, 21)]

    def pairs(index):
        return a_pair(values[index] if index < 20 else 0.02 + index / 10_000)

    alone = only(judged(monkeypatch, pairs))
    assert alone.verdict == "regression"
    assert 0.0005 < alone.time.p < 0.005

    asked = {}

    class Many(PairedRunner):
        def pair(self, method, order):
            name = str(self.case.combination)
            asked[name] = asked.get(name, 0) + 1
            return a_pair(values[asked[name] - 1] if name == "bf16" else NOISE[asked[name] - 1])

    cases = [case(name) for name in ("bf16", *(f"accum{n}" for n in range(2, 12)))]
    runner = Many(None, {"reference": measurement(), "candidate": measurement()})
    monkeypatch.setattr(Session, "_start", runner.start)
    session = Session(Tree(folder=None, name="a"), Tree(folder=None, name="b"), cases, MACHINE)
    session.run()
    assert {one.verdict for one in session.told().cases} == {"none"}
    assert asked["bf16"] == 20


def test_counts_that_do_not_repeat_are_invalid(monkeypatch):
    told = iter(range(10))
    other = measurement()

    class Restless(PairedRunner):
        def measurement(self, role):
            flops = 1000 + (next(told) if role == "candidate" else 0)
            return replace(other, counters=replace(other.counters, flops=flops))

    runner = Restless(None, {})
    monkeypatch.setattr(Session, "_start", runner.start)
    session = Session(Tree(folder=None, name="a"), Tree(folder=None, name="b"), [case()], MACHINE)
    session.run()
    assert only(session.told()).candidate.kind == "invalid"
    assert session.told().exit_code == 1
