"""Activation maps, the edits made of them, and ablation."""
