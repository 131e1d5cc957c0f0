"""What does each number format buy?"""

from stepbench.history import suite


class Precision(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["precision"]
    params = [["fp32", "tf32", "fp16", "bf16"]]
