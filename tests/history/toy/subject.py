"""What the toy's commits change."""

STEP_S = {"baseline": 0.020, "bf16": 0.010}  # by combination
PEAK_BYTES = 100_000_000
OPERATORS = 10
OUTCOMES = {
    "tf32": {"kind": "unsupported", "reason": "this CPU has no TF32"},
    "fp16": {"kind": "failed", "reason": "the process was killed by SIGKILL"},
}
