"""The command `stepbench`: options in, one call of the layer below, text out."""
