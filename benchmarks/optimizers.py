"""What does each optimizer keep for a parameter, and what does its update cost?"""

from stepbench.history import suite


class Optimizers(suite.StateCases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["optimizer"]
    params = [
        [
            "own-optimizer",
            "sgd",
            "adamw-loop",
            "adamw-foreach",
            "adamw-fused",
            "adafactor",
            "adam8bit",
            "adam8bit-compiled",
            "adam8bit-bitsandbytes",
        ]
    ]
