"""How much memory does recomputing activations save, and for how much time?"""

from stepbench.history import suite


class Checkpointing(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["checkpointing"]
    params = [["ckpt0", "ckpt1", "ckpt2", "ckpt3", "ckpt-sqrt", "ckpt-selective"]]
