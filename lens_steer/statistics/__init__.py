"""Numbers in, numbers out: scores, significance, distances, intervals and verdicts; this room knows arrays only."""
