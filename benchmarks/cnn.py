"""The same techniques on a CNN: mixed precision, and what BatchNorm makes of micro-batches."""

from stepbench.history import suite


class MixedPrecision(suite.Cases):
    """Exercise: mixed precision on a CNN, its memory and its speed."""

    workload = {"cpu": "cnn-small", "cuda": "cnn-20m"}
    param_names = ["precision"]
    params = [["fp32", "tf32", "fp16", "bf16"]]


class BatchNorm(suite.Cases):
    """Micro-batches have statistics of their own: the distance from the full batch is reported."""

    workload = MixedPrecision.workload
    param_names = ["technique"]
    params = [["accum2", "accum4", "ckpt1", "ckpt-selective", "accum4+ckpt1"]]


class GroupNorm(suite.Cases):
    """No statistics over the batch: the same techniques are the same mathematics."""

    workload = {device: f"{name}@norm=group" for device, name in MixedPrecision.workload.items()}
    param_names = BatchNorm.param_names
    params = BatchNorm.params
