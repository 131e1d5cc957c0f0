"""Every combination of the three axes; runs only when asked for, `asv run -b product_full`."""

from stepbench.history import suite


class ProductFull(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["precision", "accumulation", "checkpointing"]
    params = [
        ["fp32", "tf32", "fp16", "bf16"],
        ["accum1", "accum2", "accum4", "accum8"],
        ["ckpt0", "ckpt1", "ckpt2", "ckpt3", "ckpt-sqrt", "ckpt-selective"],
    ]
