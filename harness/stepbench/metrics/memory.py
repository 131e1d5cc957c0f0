"""Peaks by phase, what a steady step's peak is made of, and what a process keeps."""

from __future__ import annotations

from stepbench.metrics.metric import BeyondSpread, Metric
from stepbench.metrics.summary import first
from stepbench.records.measurement import Measurement

# The gate tells them in this order.
GROWTH_BYTES_PER_STEP = Metric[Measurement](
    key="growth_bytes_per_step",
    unit="bytes",
    better="lower",
    about="What each step keeps for good.",
    read=lambda one: one.growth_bytes_per_step,
    gate=BeyondSpread("growth_per_step"),
)
BUILD_PEAK_BYTES = Metric[Measurement](
    key="build_peak_bytes",
    unit="bytes",
    better="lower",
    about="Largest memory held by tensors while the model and its optimizer are made.",
    read=lambda one: one.memory.build.allocated_bytes,
    gate=BeyondSpread("build_peak"),
    asv="largest",
)
FIRST_STEP_PEAK_BYTES = Metric[Measurement](
    key="first_step_peak_bytes",
    unit="bytes",
    better="lower",
    about="Largest memory held by tensors in the first step, in which optimizer state is made.",
    read=lambda one: one.memory.first_step.allocated_bytes,
    gate=BeyondSpread("first_step_peak"),
    asv="largest",
)
PEAK_BYTES = Metric[Measurement](
    key="peak_bytes",
    unit="bytes",
    better="lower",
    about="Largest memory held by tensors in a steady step.",
    read=lambda one: one.memory.steady_step.allocated_bytes,
    parts=lambda one: {
        "parameters": one.memory.parameter_bytes,
        "gradients": one.memory.gradient_bytes,
        "optimizer_state": one.memory.optimizer_bytes,
        "activations_and_temporaries": one.memory.working_bytes,
    },
    gate=BeyondSpread("steady_peak"),
    asv="largest",
)
SAVED_BYTES = Metric[Measurement](
    key="saved_bytes",
    unit="bytes",
    better="lower",
    about="Bytes that a forward pass keeps for the backward pass.",
    read=lambda one: one.counters.saved_bytes,
    gate=BeyondSpread("saved_for_backward"),
    asv="largest",
)
PARAMETER_BYTES = Metric[Measurement](
    key="parameter_bytes",
    unit="bytes",
    better="lower",
    about="Parameters that a rank holds between steps.",
    read=lambda one: one.memory.parameter_bytes,
    asv="largest",
)
GRADIENT_BYTES = Metric[Measurement](
    key="gradient_bytes",
    unit="bytes",
    better="lower",
    about="Gradients that a rank holds before the update.",
    read=lambda one: one.memory.gradient_bytes,
    asv="largest",
)
OPTIMIZER_BYTES = Metric[Measurement](
    key="optimizer_bytes",
    unit="bytes",
    better="lower",
    about="Optimizer state that a rank holds.",
    read=lambda one: one.memory.optimizer_bytes,
    asv="largest",
)
WORKING_BYTES = Metric[Measurement](
    key="working_bytes",
    unit="bytes",
    better="lower",
    about="The steady step's peak beyond parameters and optimizer state.",
    read=lambda one: one.memory.working_bytes,
)
PROCESS_PEAK_BYTES = Metric[Measurement](
    key="process_peak_bytes",
    unit="bytes",
    better="lower",
    about="Peak of the process beyond its state before the build, with what is no tensor.",
    read=lambda one: one.memory.process_peak_bytes or None,
)
HOST_BYTES = Metric[Measurement](
    key="host_bytes",
    unit="bytes",
    better="lower",
    about="Memory of the process and its loader workers.",
    read=lambda one: one.host_bytes if one.data_wait_s else None,
)
STATE_RATIO = Metric[Measurement](
    key="state_ratio",
    unit="ratio",
    better="lower",
    about="Bytes of optimizer state over those of the parameters.",
    read=lambda one: one.memory.optimizer_bytes / max(1, one.memory.parameter_bytes),
)


def _trained_share(one: Measurement) -> float | None:
    """By gradients: of a sharded optimizer a rank has a part. Offloaded ones are there no more."""
    counters = one.counters
    trained = counters.gradient_elements or counters.trained_elements
    return trained / counters.elements if counters.elements else None


TRAINED_SHARE = Metric[Measurement](
    key="trained_share",
    unit="share",
    better="neither",
    about="Part of the parameters that had a gradient.",
    read=_trained_share,
    summary=first,
)
