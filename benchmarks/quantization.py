"""What do 8-bit floats buy, and what does training for int8 cost?"""

from stepbench.history import suite


class Quantization(suite.Cases):
    workload = {"cpu": "gpt-1m", "cuda": "gpt-124m"}
    param_names = ["quantization"]
    params = [["bf16", "bf16+fp8", "qat-int8"]]
