"""The ruler: fresh processes, probes, rounds and sweeps."""
