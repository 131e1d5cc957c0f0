"""What a run leaves: cases, outcomes, measurements and verdicts, as JSON; needs no torch."""
