"""What does training only adapters save, by rank and by where they stand?"""

from stepbench.history import suite


class Adapters(suite.StateCases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["adapters"]
    params = [["lora4", "lora8", "lora16", "lora32", "lora-attention8", "lora8+ckpt1"]]
