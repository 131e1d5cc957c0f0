"""Peak memory by phase, and what a steady step's memory is made of.

On CUDA the caching allocator's own statistics, and what CUDA graphs use beside them. On the CPU the
allocator's running total as torch's profiler reports it, which was within 0.4% of a count of
malloc; the resident set is useless as a peak of tensors. The two are not comparable: `method` says
which it was.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from stepbench.measuring.probes.reachable import tensors_in
from stepbench.records.measurement import Peak
from stepbench.training.types import Loop

T = TypeVar("T")

# How psutil tells that a process has gone, or that this kernel (a sandbox's) has no such file or
# figure: without /proc/self/smaps its answer lacks the fields.
UNREADABLE = (psutil.Error, OSError, AttributeError)


class MemoryProbe(Protocol):
    """Runs something and reads the peak of meanwhile; made before any tensor is."""

    method: str

    def watch(self, run: Callable[[], T]) -> tuple[T, Peak]: ...

    def apart(self, load: Callable[[], T]) -> T:
        """Run what loads data: what it keeps is in no peak, but for the tensors that it returns."""
        ...

    def held(self) -> int | None:
        """Bytes that tensors hold now, data included; None where that cannot be read."""
        ...

    def bytes_in(self, holder: object) -> int:
        """Bytes of its memory that tensors hold which can be reached from an object."""
        ...

    def leave_out(self, size: int) -> None:
        """Take so many bytes, which lie there now and are not the subject's, out of the peaks."""
        ...


def memory_probe(device: torch.device) -> MemoryProbe:
    """The probe for a device."""
    return CudaMemory(device) if device.type == "cuda" else CpuMemory()


class CudaMemory:
    """Peaks of torch's CUDA caching allocator, and the driver's figure for this process.

    A CUDA graph that is replayed uses its private pool without the allocator's books. A pool that
    is there before the run is therefore counted as if it were full: an upper bound. What records a
    graph is in the books.
    """

    method = "CUDA caching allocator"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def watch(self, run: Callable[[], T]) -> tuple[T, Peak]:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        unbooked_bytes = self._unbooked_bytes()
        result = run()
        torch.cuda.synchronize(self.device)
        return result, Peak(
            allocated_bytes=torch.cuda.max_memory_allocated(self.device) + unbooked_bytes,
            reserved_bytes=torch.cuda.max_memory_reserved(self.device),
            process_bytes=_driver_bytes(self.device),
        )

    def apart(self, load: Callable[[], T]) -> T:
        return load()  # data wait in host memory, which is not counted

    def held(self) -> int:
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)

    def bytes_in(self, holder: object) -> int:
        return 0  # data wait in host memory, which is not counted

    def leave_out(self, size: int) -> None:
        assert size == 0

    def _unbooked_bytes(self) -> int:
        """What private pools of this device hold beyond what the books say is allocated there."""
        return sum(
            segment["total_size"] - segment["allocated_size"]
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == self.device.index and segment["segment_pool_id"] != (0, 0)
        )


class CpuMemory:
    """The CPU allocator's running total, switched on before the first tensor exists.

    Where this torch hides the switch, the profiler's allocation changes are summed from here on.
    The data lie in the same memory as the model: what loading keeps is taken off again.
    """

    def __init__(self) -> None:
        self.absolute = _report_cpu_totals()
        self.held_bytes = 0  # by sums, where totals are not to be had
        self.loaded_bytes = 0  # in the totals, and not the subject's
        self.method = "CPU allocator total" if self.absolute else "sum of CPU allocations"

    def watch(self, run: Callable[[], T]) -> tuple[T, Peak]:
        result, changes = _allocations(run)
        return result, Peak(
            allocated_bytes=self._peak(changes),
            reserved_bytes=None,
            process_bytes=psutil.Process().memory_info().rss,
        )

    def apart(self, load: Callable[[], T]) -> T:
        result, changes = _allocations(load)
        returned = distinct_bytes(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.held_bytes += returned
        self.loaded_bytes += sum(size for size, _ in changes) - returned
        return result

    def held(self) -> int | None:
        if not self.absolute:
            return None
        # The total is told where something is allocated only.
        _, changes = _allocations(lambda: torch.empty(1))
        size, total = changes[0]
        return total - size

    def bytes_in(self, holder: object) -> int:
        # Memory of other libraries (`torch.from_numpy`), of files or shared is not the allocator's.
        parts = (part for one in tensors_in(holder) for part in plain_tensors(one))
        return distinct_bytes(
            one
            for one in parts
            if one.untyped_storage().resizable() and not one.untyped_storage().is_shared()
        )

    def leave_out(self, size: int) -> None:
        self.loaded_bytes += size

    def _peak(self, changes: Iterable[tuple[int, int]]) -> int:
        if self.absolute:
            most = max((total for _, total in changes), default=self.loaded_bytes)
            return most - self.loaded_bytes
        peak = self.held_bytes
        for size, _ in changes:
            self.held_bytes += size
            peak = max(peak, self.held_bytes)
        return peak


def _allocations(run: Callable[[], T]) -> tuple[T, list[tuple[int, int]]]:
    """What `run` gives, and by how much each change of CPU memory meanwhile led to which total."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    tree = profiled.profiler.kineto_results.experimental_event_tree()
    changes = sorted(
        (event.start_time_ns, event.typed[1].alloc_size, event.typed[1].total_allocated)
        for event in _every(tree)
        if event.tag.name == "Allocation" and event.typed[1].device.type == "cpu"
    )
    return result, [(size, total) for _, size, total in changes]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def entries(gradient: Tensor) -> Tensor:
    """A gradient's entries, without those that a sparse one leaves out: norms are the same."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def reals(tensor: Tensor) -> Tensor:
    """The tensor, or the real and imaginary parts of a complex one."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with storages of their own that a tensor is made of: codes and scales."""
    held: Any = local(tensor)
    if held.is_sparse:
        yield from (held._indices(), held._values())
        return
    if not is_traceable_wrapper_subclass(held):
        yield held
        return
    for name in held.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(held, name))


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once: tied weights count once."""
    held = (part.untyped_storage() for tensor in tensors for part in plain_tensors(tensor))
    storages = {storage._cdata: storage for storage in held}
    return sum(storage.nbytes() for storage in storages.values())


def categories(loop: Loop, device: torch.device) -> dict[str, int]:
    """Bytes that this rank holds of parameters, gradients and optimizer state on the device.

    What is offloaded is no part of the device's peak. To be called between backward and update.
    """

    def there(tensors: Iterable[Tensor]) -> int:
        parts = (part for tensor in tensors for part in plain_tensors(tensor))
        return distinct_bytes(part for part in parts if part.device.type == device.type)

    parameters = list(loop.model.parameters())
    return {
        "parameter_bytes": there(parameters),
        "gradient_bytes": there(p.grad for p in parameters if p.grad is not None),
        "optimizer_bytes": there(one for _, one in optimizer_state(loop)),
    }


def own_optimizer(loop: Loop) -> torch.optim.Optimizer:
    """What updates this rank's part of the parameters."""
    if isinstance(loop.optimizer, ZeroRedundancyOptimizer):  # its shard is an optimizer of its own
        return loop.optimizer.optim  # type: ignore[no-any-return]
    return loop.optimizer


def inner_optimizers(loop: Loop) -> Iterator[torch.optim.Optimizer]:
    """torchao's offloading optimizer has one for each parameter, and one for what stays."""
    own: Any = own_optimizer(loop)
    if not hasattr(own, "optim_dict"):
        yield own
        return
    yield from own.optim_dict.values()
    if own.d_opt is not None:
        yield own.d_opt


def optimizer_state(loop: Loop) -> Iterator[tuple[str, Tensor]]:
    """The tensors of this rank's optimizer state, each with its name (`exp_avg`)."""
    for optimizer in inner_optimizers(loop):
        for one in optimizer.state.values():
            for name, value in one.items():
                if isinstance(value, Tensor):
                    yield name, value


def parameters_with_state(loop: Loop) -> Iterator[Tensor]:
    """Those of this rank's parameters that its optimizer keeps something for."""
    for optimizer in inner_optimizers(loop):
        yield from (one for one, kept in optimizer.state.items() if kept)


def host_bytes() -> int:
    """Host memory of this process and its children, shared pages split among who shares them."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with suppress(*UNREADABLE):
            total += process.memory_full_info().pss
    return total


def _every(events: Iterable[Any]) -> Iterator[Any]:
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        yield event
        waiting.extend(event.children)


def _report_cpu_totals() -> bool:
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        switch = ctypes.c_bool.in_dll(
            ctypes.CDLL(str(library)), "FLAGS_caffe2_report_cpu_memory_usage"
        )
    except (OSError, ValueError):
        return False
    switch.value = True
    return True


def _driver_bytes(device: torch.device) -> int | None:
    """What the driver says this process holds; None where it does not tell (containers)."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    # In a PID namespace some drivers know our number there, but no memory by it: 0 bytes.
    return next((one.usedGpuMemory or None for one in processes if one.pid == os.getpid()), None)
