"""What do the techniques that steady training cost, and where do they matter?"""

from harness.history import suite


class Stability(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["technique", "norm"]
    params = [["clip1", "warmup4", "clip1+warmup4"], ["norm=pre", "norm=post"]]
