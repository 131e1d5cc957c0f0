"""How do time and memory of attention grow with the length of the sequence, kernel by kernel?

`stepbench report` prints the fitted exponents below a run's tables.
"""

from stepbench.history import suite

SHORT = ["seq=128", "seq=256", "seq=512", "seq=1024"]
LONG = ["seq=2048", "seq=4096", "seq=8192"]


class Attention(suite.Cases):
    """In 32 bits, where a CPU has flash attention and a GPU has not."""

    workload = {"cpu": "gpt-1m@batch=1", "cuda": "gpt-124m@batch=1"}
    param_names = ["attention", "length"]
    params = [["sdpa-auto", "sdpa-math", "sdpa-flash", "sdpa-efficient"], SHORT]


class AttentionLong(suite.Cases):
    """As trained on GPUs: 16 bits, up to 8192 tokens."""

    workload = {"cuda": "gpt-124m@batch=1"}
    param_names = ["attention", "length"]
    params = [
        [
            "bf16+sdpa-math",
            "bf16+sdpa-flash",
            "bf16+sdpa-efficient",
            "bf16+sdpa-cudnn",
        ],
        [*SHORT, *LONG],
    ]
