"""What does it cost to keep activations or optimizer state in host memory?"""

from stepbench.history import suite


class Offload(suite.StateCases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["offload"]
    params = [["offload-activations", "offload-optimizer", "fsdp2-offload"]]
