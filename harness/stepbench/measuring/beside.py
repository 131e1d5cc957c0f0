"""What a case's step must have in common with the same model's without what was chosen."""

from __future__ import annotations

from collections.abc import Iterable

from stepbench.records.case import Combination
from stepbench.records.measurement import Measurement
from stepbench.training.techniques import chosen_techniques, plan_of
from stepbench.training.techniques.attention import ATTENTION
from stepbench.training.techniques.compiling import COMPILE


def objection(
    combination: Combination,
    ours: Measurement,
    *,
    reference: Measurement | None,
    baseline: Measurement,
    draws: bool,
) -> str | None:
    """Why the case trained other parts of the model than it should have, or in another way.

    `reference` is what its loss is held against, None where that is not judged. Of a model that
    draws what it computes, calls are not counted.
    """
    mine, plain = ours.evidence, baseline.evidence
    beside = plain if reference is None else reference.evidence
    assert mine is not None
    assert plain is not None
    assert beside is not None
    chosen = combination.techniques
    if evaluating := set(mine.evaluating) - set(beside.evaluating):
        return f"in evaluation mode, unlike the reference: {_brief(evaluating)}"
    leaves_tensors = any(one.leaves_tensors for one in chosen_techniques(combination))
    compared = reference is not None or not leaves_tensors
    left = set(mine.unchanged) - set(beside.unchanged) if compared else set()
    if left:
        return f"not changed by the timed steps, unlike the reference's: {_brief(left)}"
    narrows = plan_of(combination).autocast is not None
    wide = set(mine.wide_modules) & set(plain.narrow_modules) if narrows else set()
    if wide:
        return f"32-bit products that autocast computes in 16 bits: {_brief(wide)}"
    kept_out = set(mine.uncompiled_modules) - set(plain.uncompiled_modules)
    if COMPILE.name in chosen and kept_out:
        return f"kept from compilation, unlike in the baseline: {_brief(kept_out)}"
    calls = sum(mine.attention_calls.values())
    expected = ours.counters.forwards * sum(plain.attention_calls.values())
    if ATTENTION.name in chosen and not draws and calls < expected:
        return f"attention called torch's kernels {calls} times in a step, not {expected}"
    return None


def _brief(names: Iterable[str]) -> str:
    first, *others = sorted(names, key=lambda name: (name.count("."), name))
    return (first or "the model") + (f" and {len(others)} more" if others else "")
