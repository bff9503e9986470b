"""Lint: what is wrong with the texts of a contrast, before a model sees them; each file holds one kind of fault."""
