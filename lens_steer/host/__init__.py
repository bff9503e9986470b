"""The only room that imports transformer_lens: loading, tokens, sites, edits attached to a live model."""
