"""What do the techniques that steady training cost, and where do they matter?"""

from stepbench.history import suite


class Stability(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["technique", "norm"]
    params = [["clip1", "warmup4", "clip1+warmup4"], ["norm=pre", "norm=post"]]


class LossScaling(suite.Cases):
    """Gradients as they are, so small that float16 flushes them to zero, and so large that the
    scaler overflows, skips steps and lowers its scale: the report's last columns."""

    workload = {"cpu": "gpt-tiny", "cuda": "gpt-124m"}
    param_names = ["precision", "gradients"]
    params = [
        ["fp16", "fp16-unscaled"],
        ["loss_factor=1", "loss_factor=1e-6", "loss_factor=1000"],
    ]
