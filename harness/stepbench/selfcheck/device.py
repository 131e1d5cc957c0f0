"""What a machine must be able to do before its numbers mean anything, one entry a check."""

from __future__ import annotations

from stepbench.selfcheck import cases, host_parts, torch_parts
from stepbench.selfcheck.cases import trains
from stepbench.selfcheck.checking import Check, needs_gpu

# A compiler starts with empty caches in each process.
COMPILING_S = 240.0


CHECKS: tuple[Check, ...] = (
    Check(name="versions", tries="versions of torch and libraries", run=host_parts.versions),
    Check(name="sandbox", tries="whether gVisor stands for the kernel", run=host_parts.sandbox),
    Check(
        name="run delay",
        tries="whether schedstat tells a delay that is forced",
        run=host_parts.run_delay,
    ),
    Check(
        name="host memory",
        tries="the memory of a process in /proc, against 64 MiB written",
        run=host_parts.host_memory,
    ),
    Check(
        name="device memory",
        tries="the memory of a process in NVML's list",
        run=host_parts.device_memory,
        not_here=needs_gpu,
    ),
    Check(
        name="allocator peak",
        tries="the allocator's peak against bytes counted by hand",
        run=torch_parts.allocator_peak,
    ),
    Check(
        name="peak of a case",
        tries="a case's peak against that of a plain loop, within 1%",
        run=cases.peak_of_a_plain_loop,
    ),
    Check(
        name="clocks agree",
        tries="marks against the wall and the profiler's trace, within 1%",
        run=torch_parts.marks_and_trace,
    ),
    Check(
        name="NVML clocks",
        tries="SM clock and temperature under load",
        run=host_parts.clocks,
        not_here=needs_gpu,
    ),
    Check(name="NVML power", tries="power under load", run=host_parts.power, not_here=needs_gpu),
    Check(
        name="NVML energy",
        tries="the energy counter under load, against power",
        run=host_parts.energy,
        not_here=needs_gpu,
    ),
    Check(
        name="CUDA graph",
        tries="a captured graph replayed with another input",
        run=torch_parts.graph_replays,
        not_here=needs_gpu,
    ),
    Check(
        name="all-reduce",
        tries="a process group (NCCL, or gloo on a CPU) that adds up its ranks",
        run=torch_parts.all_reduce,
    ),
    trains("fp32", "a case in fp32"),
    trains("tf32", "a case in TF32"),
    trains("fp16", "a case in fp16 with a loss scaler"),
    trains("bf16", "a case in bf16"),
    trains("bf16+sdpa-math", "attention as products and a softmax"),
    trains("bf16+sdpa-flash", "FlashAttention"),
    trains("bf16+sdpa-efficient", "memory-efficient attention"),
    trains("bf16+sdpa-cudnn", "cuDNN's attention"),
    trains("bf16+accum2+ckpt1", "accumulation with checkpointing"),
    trains("workers2", "loader workers"),
    trains("bf16+fp8", "8-bit floats by torchao"),
    trains("offload-activations", "activations in host memory"),
    trains("offload-optimizer", "optimizer state and update in host memory"),
    trains("ddp", "DDP on the GPUs held, or 2 ranks on a CPU"),
    trains("fsdp2", "FSDP2 on the GPUs held, or 2 ranks on a CPU"),
    *(
        Check(
            name=f"oom in {phase}",
            tries=f"an allocation in {phase} that fails becomes the outcome oom, with its phase",
            run=cases.runs_out_of_memory(phase),
        )
        for phase in ("build", "forward", "backward", "update")
    ),
    # Last: they take longest, and a host's time may end before.
    trains("compile", "torch.compile", COMPILING_S),
    trains("compile-overhead", "torch.compile that replays CUDA graphs", COMPILING_S),
)
