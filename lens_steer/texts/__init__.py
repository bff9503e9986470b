"""Texts and their labels: contrasts, readers, and which rows may stand on the two sides of a split."""
