"""Collecting, pooling and keeping activations."""
