"""Training and judging the embedded checkpoint."""
