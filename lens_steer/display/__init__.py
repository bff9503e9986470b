"""How results look: rounded tables, and the page by which a result shows itself in a notebook."""
