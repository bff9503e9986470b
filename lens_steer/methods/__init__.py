"""Steering methods: settings with one `fit(model, contrast, *, activations=None) -> Intervention`."""
