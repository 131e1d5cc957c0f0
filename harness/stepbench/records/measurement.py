"""What a fresh process, or a group of ranks, observed of a case: times, memory, counters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from stepbench.records.evidence import Evidence
from stepbench.records.jsonable import Jsonable

# What the time of a step goes to: waiting for the batch, the loop's functions, and what is between.
StepPart = Literal["data", "forward", "backward", "update", "rest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters(Jsonable):
    """What was observed in one step of the eager program, outside the timed steps.

    Attributes:
        forwards: micro-batches that went forward.
        updates: optimizer updates.
        shares: sum of the factors by which the micro-batches' losses counted; the mean over ranks.
        parameters_changed: whether the update changed any parameter, or was one that the scaler
            skipped.
        flops: floating-point operations of matrix products, convolutions and attention
            (2 per multiply-add, causal attention counted in full: torch's own convention).
        matmul_flops: the same of forward and backward matrix products and attention, by the type
            of their inputs, `{"bfloat16": …}`.
        batched_flops: those of them of batched products, which attention is made of where no kernel
            fuses it.
        matmul_error: largest relative error against float64 of the first 8 float32 matrix products,
            the first 8 with a sum (biases), and the first 8 convolutions; about 1e-7 for true
            float32 and 3e-4 for TF32; None where none ran.
        operators: dispatched operators by name.
        saved_bytes: distinct bytes that a forward pass made and that are alive at its end, because
            the backward pass needs them or the code keeps them (parameters and inputs not
            counted); the largest micro-batch.
        blocks: repeated blocks in the model.
        forward_blocks, backward_blocks: index of every block that ran forward, and of every one
            whose output was given a gradient, in order; as often as they did.
        recomputed_blocks: index of every block whose forward ran again during backward, in order.
        recomputed_flops: floating-point operations of recomputed products.
        recomputed_products: matrix products, convolutions and attention that ran during a
            recomputation.
        recomputed_score_flops: floating-point operations of the scores that fused attention
            computes again in its backward pass.
        loss_scale: the value backward started from over the loss that forward returned.
        loader_processes: worker processes that loaded batches; 0: the training process did.
        batches_ahead: most batches that were under way while a step ran.
        epoch_batches: batches in one epoch.
        workers_survived: whether the same worker processes loaded the next epoch.
        pinned: whether the batch lay in page-locked memory.
        ranks: that the case asked for.
        replicas: devices that products ran on in this process: several under DataParallel.
        group_ranks: ranks of the process group; 0 where there is none.
        bucketed_gradients: gradients that lie in one storage with others, as in DDP's buckets.
        bucket_view, static_graph, finds_unused: what DDP's reducer says of itself: whether
            gradients lie in its buckets, whether it takes the graph for one that never changes, and
            whether it looks for parameters without a gradient.
        sharded_parameters: parameters of which this rank holds a shard.
        trained_bytes: of all parameters that had a gradient, whole ones where they are sharded.
        collective_calls: collectives of this rank by kind, `{"all_reduce": 2}`.
        collective_bytes: their payload by kind, each the size of the whole tensor: what an
            all-reduce works on, what an all-gather yields, what a reduce-scatter is given.
        threads: that this rank's operators were given, on a CPU; 0 on a device.
        ran_threads: threads that a large operator really ran on beside it; 0 on a device.
        elements: parameters' elements that this rank holds.
        trained_elements: those of them that its optimizer was given.
        updated_elements: those of them that had a gradient.
        kept_elements: those of them that its optimizer keeps state for: all that had a gradient in
            any step.
        large_elements: those of them again in tensors that 8-bit optimizers take: of 4096 elements
            or more, in whole blocks of 256.
        gradient_elements: elements that this rank holds of all gradients.
        sparse_gradients: parameters whose gradient is sparse.
        frozen_gradients: parameters that are not trained and had a gradient all the same.
        host_state_elements: elements of its optimizer's state in host memory, where the loop
            computes elsewhere.
        saved_host_bytes: bytes saved for backward in host memory by products that ran elsewhere.
        gradient_norm: norm of the unscaled gradients before the update; None where it is not
            finite, or backward has moved them to the host already.
        applied_norm: norm of the unscaled gradients that the optimizer was given; None if the
            scaler skipped the step.
        zero_gradients: share of the elements of those gradients, this rank's, that are exactly 0.
        learning_rates: those of the first applied updates, of the first parameter group.
        other_learning_rates: the same of each other group.
        state_elements: elements of its optimizer's state by type, step counters not counted.
        adapted_layers: layers that an adapter stands on, by kind.
        compiled_calls: calls into compiled graphs, those of the loss left out, in a step that was
            not forced to be eager.
        compiled_updates: the same in that step's update, by an optimizer that compiles itself.
        eager_products: products of that step outside compiled graphs, seen in their backward pass.
        all_products: the same of an eager step.
        skipped_frames: frames that dynamo gave up and left to eager execution.
    """

    RETIRED: ClassVar[frozenset[str]] = frozenset({"trained_blocks"})

    forwards: int
    updates: int
    flops: int
    matmul_flops: Mapping[str, int]
    matmul_error: float | None
    operators: Mapping[str, int]
    saved_bytes: int
    blocks: int
    recomputed_blocks: tuple[int, ...]
    recomputed_products: int
    loss_scale: float
    batched_flops: Mapping[str, int] = field(default_factory=dict)
    recomputed_flops: int = 0
    recomputed_score_flops: int = 0
    shares: float = 1.0
    parameters_changed: bool = True
    loader_processes: int = 0
    batches_ahead: int = 0
    epoch_batches: int = 0
    workers_survived: bool = False
    pinned: bool = False
    ranks: int = 1
    replicas: int = 1
    group_ranks: int = 0
    bucketed_gradients: int = 0
    bucket_view: bool = False
    static_graph: bool = False
    finds_unused: bool = False
    sharded_parameters: int = 0
    trained_bytes: int = 0
    forward_blocks: tuple[int, ...] = ()
    backward_blocks: tuple[int, ...] = ()
    collective_calls: Mapping[str, int] = field(default_factory=dict)
    collective_bytes: Mapping[str, int] = field(default_factory=dict)
    threads: int = 0
    ran_threads: int = 0
    elements: int = 0
    trained_elements: int = 0
    updated_elements: int = 0
    kept_elements: int = 0
    large_elements: int = 0
    gradient_elements: int = 0
    sparse_gradients: int = 0
    frozen_gradients: int = 0
    host_state_elements: int = 0
    saved_host_bytes: int = 0
    gradient_norm: float | None = None
    applied_norm: float | None = None
    zero_gradients: float = 0.0
    learning_rates: tuple[float, ...] = ()
    other_learning_rates: tuple[tuple[float, ...], ...] = ()
    state_elements: Mapping[str, int] = field(default_factory=dict)
    adapted_layers: Mapping[str, int] = field(default_factory=dict)
    compiled_calls: int = 0
    compiled_updates: int = 0
    eager_products: int = 0
    all_products: int = 0
    skipped_frames: int = 0

    @property
    def model_flops(self) -> int:
        """What the step's result needs: all but what is computed again."""
        return self.flops - self.recomputed_flops - self.recomputed_score_flops

    @property
    def counts(self) -> Counters:
        """What must repeat exactly: all but the figures that depend on the weights' values."""
        return dataclasses.replace(
            self,
            matmul_error=None,
            loss_scale=0.0,
            shares=1.0,
            gradient_norm=None,
            applied_norm=None,
            zero_gradients=0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak(Jsonable):
    """The largest memory of one phase, in bytes.

    `allocated_bytes`: held by tensors, and by CUDA graphs, whose pools count in full: an upper
    bound where there are any. `reserved_bytes`: kept by a caching allocator (None on CPU,
    which has none). `process_bytes`: what the driver (CUDA) or the kernel (CPU: resident set) says
    of the process when the phase ends.
    """

    allocated_bytes: int
    reserved_bytes: int | None
    process_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Jsonable):
    """Peaks by phase, and by category what a steady step's peak is made of.

    What is offloaded to the host is in no category. `working_bytes` is the peak beyond parameters
    and optimizer state: activations, temporaries and those gradients that exist when it is reached
    (not all do: each is made during backward). `method` names how the peaks were read: unlike
    methods are never compared. `process_peak_bytes` is what the process held in a steady step
    beyond its state before the build, in tensors or not (on a CPU; None where it is not told).
    """

    method: str
    build: Peak
    first_step: Peak
    steady_step: Peak
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    process_peak_bytes: int | None = None

    @property
    def working_bytes(self) -> int:
        return self.steady_step.allocated_bytes - self.parameter_bytes - self.optimizer_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState(Jsonable):
    """What a GPU was like during a window, from so many samples; None for what it does not tell.

    The samples are those within the window, or the ones next to it where it was too short for any.

    `clock_mhz` is the median of its processors' clock, `temperature_c` the highest, `power_w` the
    mean. `energy_j` is what its energy counter rose by in `energy_s` of the window, a second at
    least; None in a shorter one. `foreign_processes` are most processes of others at once that used
    it, None where its driver does not show ours either (containers).
    """

    samples: int
    clock_mhz: float | None
    lowest_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle_reasons: tuple[str, ...]
    foreign_processes: int | None
    energy_j: float | None = None
    energy_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation(Jsonable):
    """What torch.compile did, from empty caches.

    `compile_s`: seconds in the compiler. `graphs`: what it made. `graph_breaks`: where it gave up
    and began anew. `recompiles`: made again for a frame that it had compiled before.
    """

    compile_s: float
    graphs: int
    graph_breaks: int
    recompiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication(Jsonable):
    """Seconds of a step under torch's profiler, one that is never timed otherwise.

    `running_s`: some collective ran. `exposed_s`: one ran and nothing was computed meanwhile (on
    CPU no operator, on CUDA no other kernel and no copy). Of several ranks, each is the mean of
    theirs: one that is late exposes the others, not itself. `exposed_shares`: the exposed share of
    each part of the step in which it is not 0.
    """

    step_s: float
    running_s: float
    exposed_s: float
    exposed_shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank(Jsonable):
    """What one rank of several measured for itself."""

    window_s: float
    memory: Memory
    collective_calls: Mapping[str, int]
    collective_bytes: Mapping[str, int]
    communication: Communication | None = None
    device: DeviceState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Jsonable):
    """What one fresh process measured of one case, or a group of them, one a rank.

    Of several ranks the slowest's window counts, and the memory of the one whose steady peak is
    the largest (of build and first step the largest of any); counters are rank 0's; losses are
    means, tokens and host memory sums over ranks.

    Attributes:
        step_s: seconds of each timed optimizer step, data included (raw samples).
        cpu_s: CPU seconds of the process in each of them, all its threads.
        delay_s: seconds that the process' main thread waited for a processor in each of them;
            empty where the kernel does not count it.
        window_s: wall seconds from the first boundary mark to the last.
        batches: of each timed step, its batch: by the seeded order, counted through the epochs. A
            gap is a step that compiled something and is no sample.
        tokens: loss terms (tokens, images) in one step's global batch, the mean of the timed steps.
        step_tokens: loss terms of each timed step.
        period: after how many steps slow steps are slow again, as several processes have shown.
        build_s: seconds to build model, optimizer and loader.
        warmup_steps: steps before the window, the parity steps among them.
        steady: whether the last of them was no slower than the fastest, and on a GPU its clock at
            rest.
        losses, grad_norms: of the first applied steps after build, never timed.
        loss_tolerance: relative difference of either that its techniques' rounding may make.
        same_parameter_steps: how many of them, from the first on, began at the initial parameters;
            the others show how far training drifts.
        descents: how far the updates of those, but for the first, led along their gradient g: the
            change of all parameters times g, over the norm of g; negative where they descend.
        skipped_steps: steps that the loss scaler skipped among those.
        overhead_s: wall seconds from fork to reaped, less every optimizer step that the process
            ran (`steps_run`) at its mean timed step.
        environment: what ran: digests of package, workload and data, versions, threads, allocator
            settings.
        disturbances: what shared the machine during the window; empty when nothing did.
        data_wait_s: seconds that each timed step waited for its batch.
        epoch_pause_s: seconds from asking for an epoch's first batch to having it, an epoch before
            having ended.
        host_bytes: host memory of the process and its loader workers after the window, each shared
            page counted once (proportional set size).
        growth_bytes_per_step: what tensors, or anything else in host memory, hold more after each
            step; 0.0 where it is less than 64 KiB, None where it was not told. Of several ranks the
            most.
        parts_s: seconds of each timed step by `StepPart`, adding up to `step_s`; the device's.
        communication: where there is a process group.
        compilation: where anything was compiled; it is in no timed step.
        unproved: techniques that were seen active in the eager program only, where a compiled one
            was timed.
        ranks: each rank's own figures, where there are several.
        device: the GPU's state during the window (of several ranks, the slowest's).
        allocation_retries: how often in the window the caching allocator had to give memory back
            to the driver before it could go on.
        evidence: what shows that the timed steps trained; None in records older than it.
    """

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    window_s: float
    tokens: int
    build_s: float
    warmup_steps: int
    steps_run: int
    overhead_s: float
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    skipped_steps: int
    memory: Memory
    counters: Counters
    environment: Mapping[str, str | int | bool | None]
    disturbances: tuple[str, ...]
    delay_s: tuple[float, ...] = ()
    batches: tuple[int, ...] = ()
    step_tokens: tuple[int, ...] = ()
    period: int | None = None
    steady: bool = True
    data_wait_s: tuple[float, ...] = ()
    epoch_pause_s: float | None = None
    host_bytes: int | None = None
    parts_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    communication: Communication | None = None
    compilation: Compilation | None = None
    unproved: tuple[str, ...] = ()
    same_parameter_steps: int = 0
    descents: tuple[float, ...] = ()
    ranks: tuple[Rank, ...] = ()
    device: DeviceState | None = None
    allocation_retries: int = 0
    loss_tolerance: float = 0.0
    growth_bytes_per_step: float | None = None
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        if not self.step_s or not all(0 < step_s < math.inf for step_s in self.step_s):
            raise ValueError(f"timed steps must take finite time; got {list(self.step_s)[:5]}")
