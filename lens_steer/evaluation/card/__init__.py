"""The edit card: one page that answers whether one should use an edit. One item of it per file."""
