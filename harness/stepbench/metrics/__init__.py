"""Every figure of a case, each in one place, for tables, ASV, the gate and thresholds."""
