"""What do more ranks buy, and what does each of them hold and exchange?"""

from stepbench.history import suite


class Parallel(suite.RankCases):
    """The same global batch split over the ranks (strong scaling)."""

    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["parallel", "ranks", "checkpointing"]
    params = [
        ["dataparallel", "ddp", "zero1", "zero2", "fsdp2"],
        ["ranks1", "ranks2", "ranks4"],
        ["ckpt0", "ckpt1"],
    ]


class ParallelWeak(suite.RankCases):
    """A global batch that grows with the ranks: "N times faster" is a claim about this one."""

    workload = Parallel.workload
    batch_grows = True
    param_names = ["parallel", "ranks"]
    params = [["dataparallel", "ddp", "fsdp2"], ["ranks2", "ranks4"]]


class ParallelTwoDevices(suite.RankCases):
    """Exercise: the throughput of DataParallel and of DDP on two devices, each beside one."""

    workload = {"cpu": "gpt-1m@seq=128,batch=16", "cuda": "gpt-124m@batch=32"}
    param_names = ["parallel", "ranks"]
    params = [["dataparallel", "ddp"], ["ranks2"]]


class ParallelThreads(suite.Cases):
    """What two ranks on one CPU are held against: one process on as many threads."""

    workload = {"cpu": "gpt-1m"}
    param_names = ["threads"]
    params = [["threads1", "threads2", "threads4", "threads8"]]


class ParallelComposed(suite.RankCases):
    """With what else data parallelism is used."""

    workload = Parallel.workload
    param_names = ["recipe", "ranks"]
    params = [
        ["bf16+ddp", "accum2+ddp", "bf16+fsdp2", "accum2+fsdp2", "bf16+accum2+ckpt1+fsdp2"],
        ["ranks2"],
    ]
