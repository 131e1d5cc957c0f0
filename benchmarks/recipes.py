"""Combinations that training guides recommend, each as a whole."""

from stepbench.history import suite


class Recipes(suite.Cases):
    """Mixed precision first, then checkpointing for memory, then micro-batches for batch size."""

    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["recipe"]
    params = [
        [
            "bf16",
            "fp16",
            "bf16+ckpt1",
            "bf16+ckpt2",
            "bf16+ckpt3",
            "bf16+accum4",
            "bf16+accum4+ckpt1",
        ]
    ]


class Batch256(suite.Cases):
    """Exercise: a batch of 256 as 4 micro-batches of 64."""

    workload = {"cpu": "gpt-1m@seq=16,batch=256", "cuda": "gpt-124m@seq=128,batch=256"}
    param_names = ["accumulation"]
    params = [["accum1", "accum4"]]


class InputPipeline(suite.Cases):
    """Workers that live on, two batches ahead; pinned too where there is a device to copy to."""

    workload = {"cpu": "cnn-small", "cuda": "cnn-20m"}
    param_names = ["recipe"]
    params = [["workers4+persistent", "workers8+persistent", "workers8+pinned+persistent"]]
