"""The playground: a prompt continued without and with edits, side by side, in a notebook or on a page."""
