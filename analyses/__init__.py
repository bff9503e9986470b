"""Studies: library calls only, one question per file."""
