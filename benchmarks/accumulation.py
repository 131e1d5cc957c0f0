"""What do micro-batches save, and what do they cost?"""

from stepbench.history import suite


class Accumulation(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["accumulation"]
    params = [["accum1", "accum2", "accum4", "accum8"]]
