"""The ruler: fresh processes, probes, rounds and sweeps."""

import os
import sys

# OpenMP reads it once, when torch is loaded. Threads that spin while they wait take the processor
# from those they wait for: on a busy machine a step of two threads took 704 ms so, passively 190.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
