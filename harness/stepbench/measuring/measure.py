"""One case beside its baseline, in rounds of fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from stepbench.measuring import beside, repeat
from stepbench.measuring.ranks import guilty, merged
from stepbench.measuring.settings import Settings
from stepbench.measuring.team import crowded, run_ranks, too_few_cores, too_few_devices
from stepbench.measuring.window_plan import WindowPlan, by_one_plan, first_plan
from stepbench.records.case import Case
from stepbench.records.evidence import Repetition
from stepbench.records.machine import device_type
from stepbench.records.measurement import Measurement
from stepbench.records.outcome import Outcome
from stepbench.records.run import Record, Round
from stepbench.stats.measures import (
    disturbed,
    drift,
    is_short,
    parity_difference,
    step_s,
    with_period,
)
from stepbench.stats.noise import first_begins, one_more
from stepbench.store import now
from stepbench.training.techniques import (
    chosen_techniques,
    combine,
    incompatible,
    other_mathematics,
    plan_of,
    tolerance,
    unsupported,
)
from stepbench.training.techniques.accumulation import ACCUMULATION, accumulate
from stepbench.training.techniques.parallel import PARALLEL, unsharded
from stepbench.training.types import Workload
from stepbench.training.workloads import of_case

# CUDA's fused attention and convolutions add up in an order that changes from run to run: the
# same program gives gradients that differ like accumulation's.
CUDA_DIFFERENCE = 1e-3
# Ranks that share their mathematics with other ranks still add up in another order.
RANKS_DIFFERENCE = 1e-3
DRAWS = "the model draws random numbers or moves buffers, which moves a step's figures"
# What may round may draw otherwise: so many times what two draws of one step were apart.
OF_DRAWS = 3
NOT_JUDGED = "it is other mathematics than the baseline"


class Stopped(Exception):
    """A process gave no number, or one that would be wrong; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


def measure(case: Case, settings: Settings, machine: Mapping[str, Any]) -> Record:
    """Measure a case; whatever goes wrong with it is the record's outcome, never an exception.

    Order is balanced over rounds: baseline first, case first, and again. Both sides of a round time
    the same batches, and each round those that follow. A disturbed round is kept, and measured
    again within the settings' limit; so is one that held less than a period of its slow steps.
    """
    reason = why_not(case, settings, machine)
    if reason:
        return _record(case, Outcome(kind="unsupported", reason=reason), ())
    rounds: tuple[Round, ...] = ()
    plan = first_plan(case, settings)
    most = settings.rounds + min(settings.rounds, settings.extra_rounds)
    for index in count():
        quiet = sum(not disturbed(one) and not is_short(one) for one in rounds)
        if not one_more(quiet, len(rounds), settings.rounds, most):
            break
        order: Literal["baseline first", "case first"] = (
            "baseline first" if first_begins(index) else "case first"
        )
        try:
            one = _round(case, order, settings, plan, device_type(machine))
        except Stopped as stopped:
            return _record(case, stopped.outcome, rounds)
        rounds = with_period([*rounds, one])
        plan = plan.following(rounds, settings)
    try:
        randomness = _randomness(
            case, rounds[0].case, settings, first_plan(case, settings), device_type(machine)
        )
        outcome = _judged(case, rounds, settings, device_type(machine), randomness)
    except Stopped as stopped:
        outcome = stopped.outcome
    return _record(case, outcome, rounds)


def measure_process(
    case: Case, settings: Settings, machine: Mapping[str, Any], plan: WindowPlan | None = None
) -> Measurement:
    """What one fresh process measured of a case, for whoever pairs processes in its own way.

    Without a plan it finds out for itself how warm it must be and how many steps fit.

    Raises:
        Stopped: there is no number, or it would be wrong.
        StepbenchError: the workload cannot be loaded.
    """
    reason = why_not(case, settings, machine)
    if reason:
        raise Stopped(Outcome(kind="unsupported", reason=reason))
    return _process(case, settings, plan or first_plan(case, settings), device_type(machine))


def why_not(case: Case, settings: Settings, machine: Mapping[str, Any]) -> str | None:
    """Why the case is `unsupported` here, or None; nothing has started yet."""
    return (
        too_few_devices(case, machine)
        or unsupported(case, machine)
        or too_few_cores(case, settings, machine)
        or incompatible(of_case(case), case)
    )


def _record(case: Case, outcome: Outcome, rounds: tuple[Round, ...]) -> Record:
    return Record(case=case, outcome=outcome, rounds=rounds, measured_at=now())


def _round(
    case: Case,
    order: Literal["baseline first", "case first"],
    settings: Settings,
    plan: WindowPlan,
    device: str,
) -> Round:
    """Both sides by one plan; the first one again where the second had to warm up longer."""
    sides = {"case": _case_process, "baseline": _baseline_process}
    names = ("case", "baseline") if order == "case first" else ("baseline", "case")
    first, second = (sides[name] for name in names)
    one, other = by_one_plan(
        lambda plan: first(case, settings, plan, device),
        lambda plan: second(case, settings, plan, device),
        plan,
    )
    return Round(order=order, **dict(zip(names, (one, other), strict=True)))


def _case_process(case: Case, settings: Settings, plan: WindowPlan, device: str) -> Measurement:
    return _process(case, settings, plan, device)


def _baseline_process(case: Case, settings: Settings, plan: WindowPlan, device: str) -> Measurement:
    try:
        return _process(case.baseline, settings, plan, device)
    except Stopped as stopped:
        if case == case.baseline:
            raise
        raise Stopped(
            _failed(f"its baseline gave no number: {stopped.outcome}", stopped.outcome)
        ) from stopped


def _process(case: Case, settings: Settings, plan: WindowPlan, device: str) -> Measurement:
    """One fresh process a rank; Stopped if they gave no number, or one that would be wrong."""
    ended = run_ranks(case, settings, plan, device)
    if any(one.death is not None or "outcome" in one.answer for one in ended):
        raise Stopped(guilty(ended))
    answer = merged([one.answer for one in ended])
    if "outcome" in answer:
        raise Stopped(Outcome.from_json(answer["outcome"]))
    measurement = Measurement.from_json(answer["measurement"])
    if objection := answer["objection"]:
        raise Stopped(Outcome(kind="invalid", reason=objection))
    own_s = measurement.steps_run * step_s(measurement)
    wall_s = max(one.wall_s for one in ended)
    return replace(measurement, overhead_s=wall_s - own_s)


def _randomness(
    case: Case, ours: Measurement, settings: Settings, plan: WindowPlan, device: str
) -> float:
    """How far what the model draws moves a step's figures, from the timed steps run once more.

    Raises:
        Stopped: those were other steps, or there were none.
    """
    assert ours.evidence is not None
    ended = run_ranks(case, settings, plan, device, ours.evidence)
    if any(one.death is not None or "outcome" in one.answer for one in ended):
        told = guilty(ended)
        raise Stopped(replace(told, reason=f"its steps could not be run again: {told.reason}"))
    again = repeat.merged([Repetition.from_json(one.answer["repetition"]) for one in ended])
    if reason := repeat.objection(ours.evidence, again, device):
        raise Stopped(Outcome(kind="invalid", reason=reason))
    return again.randomness


def _judged(
    case: Case, rounds: tuple[Round, ...], settings: Settings, device: str, randomness: float
) -> Outcome:
    """`invalid` where the loss left its tolerance, or counts that must repeat did not.

    Where a technique is other mathematics than the baseline (None as its tolerance), the rest is
    held against one more process with only such techniques; alone, it is reported without judging.
    """
    if any(one.case.counters.counts != rounds[0].case.counters.counts for one in rounds):
        return Outcome(kind="invalid", reason="its operator counts differed between rounds")
    draws = randomness > repeat.DRAWN[device]
    workload = replace(
        of_case(case),
        batch_dependent=bool(rounds[0].case.environment["batch_dependent"]) or draws,
        optimizer_kind=str(rounds[0].case.environment["optimizer"]),
    )
    reference = _reference(case, workload)
    if reference.combination == case.combination != case.baseline.combination:
        _require_alike(case, rounds, None, draws)
        return _ok(f"loss not judged: {NOT_JUDGED}", *_about(case, rounds[0].case))
    allowed, against = tolerance(workload, case.combination), "the baseline"
    references = [one.baseline for one in rounds]
    if reference != case.baseline:
        allowed += tolerance(workload, reference.combination)
        if PARALLEL.name in reference.combination.techniques:
            allowed += RANKS_DIFFERENCE
        references = [_reference_process(reference, settings, device)] * len(rounds)
        against = reference.chosen
    _require_alike(case, rounds, references, draws)
    pairs = [(one, each.case) for one, each in zip(references, rounds, strict=True)]
    difference = max(parity_difference(*pair) for pair in pairs)
    if device == "cuda":
        allowed += CUDA_DIFFERENCE
    if allowed and draws and allowed < difference <= allowed + OF_DRAWS * randomness:
        return Outcome(kind="ok", reason=f"loss not judged: {DRAWS} ({randomness:.1e})")
    if difference > allowed:
        return Outcome(
            kind="invalid",
            reason="loss, gradient norm or update at the same parameters differs from "
            f"{against}'s by {difference:.1e}, more than the {allowed:.1e} that "
            f"{case.combination} may{_remedy(case, workload)}",
        )
    drifted = max(drift(*pair) for pair in pairs)
    return _ok(
        f"loss judged against {against}" if reference != case.baseline else None,
        f"equal within {difference:.1e} at the same parameters, updates then drift apart by "
        f"{drifted:.1e}: not judged"
        if drifted > allowed
        else None,
        *_about(case, rounds[0].case),
        crowded(case, rounds[0].case.environment),
    )


def _remedy(case: Case, workload: Workload) -> str:
    """What to say of a workload whose batch in parts gave another loss than the whole."""
    parts = plan_of(case.combination).micro_batches * case.ranks
    if parts == 1:
        return ""
    said = "" if workload.batch_dependent else "batch_dependent=True, or "
    return f"; say {said}loss_terms= where samples differ"


def _ok(*notes: str | None) -> Outcome:
    return Outcome(kind="ok", reason="; ".join(filter(None, notes)) or None)


def _about(case: Case, one: Measurement) -> Iterator[str]:
    """What the techniques say of themselves, and what they did only in part."""
    yield from filter(None, (each.note for each in chosen_techniques(case.combination)))
    counters = one.counters
    if counters.adapted_layers:
        each = (f"{count} {kind}" for kind, count in counters.adapted_layers.items())
        yield f"adapters on {', '.join(each)}"
    if one.compilation is None or not counters.compiled_calls or not counters.all_products:
        return
    share = 1 - counters.eager_products / counters.all_products
    if share < 1 or counters.skipped_frames:
        yield f"{share:.0%} of products compiled, {counters.skipped_frames} frames left to eager"


def _require_alike(
    case: Case, rounds: tuple[Round, ...], references: list[Measurement] | None, draws: bool
) -> None:
    for index, one in enumerate(rounds):
        reference = references[index] if references else None
        reason = beside.objection(
            case.combination, one.case, reference=reference, baseline=one.baseline, draws=draws
        )
        if reason:
            raise Stopped(Outcome(kind="invalid", reason=reason))


def _reference(case: Case, workload: Workload) -> Case:
    """What the case's loss is held against: the baseline, or itself without what is judged.

    Sharding is judged against plain data parallelism on as many ranks where that is other
    mathematics than one process. A grown batch is taken in as many micro-batches: it would not fit
    where it would not have to.
    """
    names = dict(other_mathematics(workload, case.combination).techniques)
    if plan_of(combine(names.values())).distributed:
        names[PARALLEL.name] = unsharded(names[PARALLEL.name])
    elif case.batch_factor > 1:
        names[ACCUMULATION.name] = accumulate(case.batch_factor).name
    combination = combine(names.values())
    ranks = case.ranks if plan_of(combination).distributed else 1
    return replace(case, combination=combination, ranks=ranks)


def _reference_process(case: Case, settings: Settings, device: str) -> Measurement:
    try:
        return _process(case, settings, first_plan(case, settings), device)
    except Stopped as stopped:
        reason = f"what its loss is held against gave no number: {case.chosen} {stopped.outcome}"
        raise Stopped(_failed(reason, stopped.outcome)) from stopped


def _failed(reason: str, because: Outcome) -> Outcome:
    return Outcome(kind="failed", reason=reason, traceback=because.traceback)
