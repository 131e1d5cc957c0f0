"""Do the techniques still pay when they are combined?"""

from stepbench.history import suite


class Product(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["precision", "accumulation", "checkpointing"]
    params = [
        ["fp32", "bf16"],
        ["accum1", "accum2", "accum4"],
        ["ckpt0", "ckpt1", "ckpt2", "ckpt-selective"],
    ]


class ProductFp16(suite.Cases):
    """One cell only: fp16 is an order of magnitude slower on a CPU."""

    workload = Product.workload
    param_names = Product.param_names
    params = [["fp16"], ["accum4"], ["ckpt2"]]
