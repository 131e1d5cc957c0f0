"""What must be seen of ranks and devices: who took part, what each exchanged, and how often.

The proofs of the axis parallel, from what was observed in a step.
"""

from __future__ import annotations

from collections.abc import Callable

from stepbench.records.measurement import Counters
from stepbench.training.types import Plan


def proof_single(counters: Counters, plan: Plan) -> str | None:
    """One process alone exchanges nothing."""
    ran = sum(counters.collective_calls.values())
    return f"{ran} collectives ran in a process that should be alone" if ran else None


def _too_few_ranks(counters: Counters) -> str | None:
    if counters.group_ranks == counters.ranks:
        return None
    return f"{counters.group_ranks} ranks were in the group, not {counters.ranks}"


def _not_all(counters: Counters, kind: str) -> str | None:
    """Why not every trained parameter was in that kind of collective, or None."""
    moved, trained = counters.collective_bytes.get(kind, 0), counters.trained_bytes
    if moved >= trained:
        return None
    return f"{kind} moved {moved} bytes in a step, not all {trained} of what is trained"


def proof_replicated(
    *, bucket_view: bool = False, static_graph: bool = False, finds_unused: bool = False
) -> Callable[[Counters, Plan], str | None]:
    """DDP reduces every gradient once a step, in its buckets or beside them."""

    def proof(counters: Counters, plan: Plan) -> str | None:
        if counters.bucket_view != bucket_view or counters.bucketed_gradients < bucket_view:
            return f"gradients lay {'in' if counters.bucket_view else 'beside'} DDP's buckets"
        if counters.static_graph != static_graph:
            return f"its graph was {'taken' if counters.static_graph else 'not taken'} for static"
        if counters.finds_unused != finds_unused:
            return (
                f"it {'looked' if counters.finds_unused else 'did not look'} for unused parameters"
            )
        return _reduced(counters, plan)

    return proof


def _reduced(counters: Counters, plan: Plan) -> str | None:
    moved = counters.collective_bytes.get("all_reduce", 0)
    if plan.micro_batches > 1 and moved >= plan.micro_batches * counters.trained_bytes:
        return "gradients were reduced with every micro-batch, not once a step"
    return _too_few_ranks(counters) or _not_all(counters, "all_reduce")


def proof_zero1(counters: Counters, plan: Plan) -> str | None:
    """Every gradient is reduced, and every parameter sent by the rank that updates it."""
    return _reduced(counters, plan) or _not_all(counters, "broadcast")


def proof_fsdp(*, reshard: bool) -> Callable[[Counters, Plan], str | None]:
    """Blocks are gathered for every forward and backward, or once a step unless resharded."""

    def proof(counters: Counters, plan: Plan) -> str | None:
        if counters.sharded_parameters == 0:
            return "no parameter was sharded"
        if told := _too_few_ranks(counters):
            return told
        if counters.group_ranks == 1:  # nothing to gather from
            return None
        gathered = counters.collective_calls.get("all_gather", 0)
        # Blocks that did not run were not needed, nor in backward frozen ones before the first
        # trained one; the root is a group too where it has parameters of its own.
        forward, backward = counters.forward_blocks, counters.backward_blocks
        every_time = (len(forward) + len(backward)) or 2 * plan.micro_batches
        least = every_time if reshard else max(1, len(set(forward)))
        most = None if reshard else counters.blocks + 1
        if gathered < least or (most is not None and gathered > most):
            return f"{gathered} all-gathers ran in a step, not {least} to {most or 'more'}"
        if counters.collective_calls.get("reduce_scatter", 0) > counters.blocks + 1:
            return "gradients were reduced with every micro-batch, not once a step"
        # Padding makes it more where rows do not divide by the ranks.
        return _not_all(counters, "reduce_scatter")

    return proof


def proof_fsdp_offload(counters: Counters, plan: Plan) -> str | None:
    """Seen in what the optimizer keeps; of one that keeps nothing only the shards are."""
    on_host, kept = counters.host_state_elements, sum(counters.state_elements.values())
    if on_host < kept:
        return f"{on_host} of {kept} elements of optimizer state were in host memory"
    return proof_fsdp(reshard=True)(counters, plan)


def proof_threads(counters: Counters, plan: Plan) -> str | None:
    """DataParallel computes on every device of the case."""
    if counters.replicas == counters.ranks:
        return None
    return f"products ran on {counters.replicas} devices, not on {counters.ranks}"
