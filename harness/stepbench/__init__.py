"""Stepbench: what each training technique buys on this machine, measured beside its baseline."""
