"""How well units tell source from target, and how sure that is."""
