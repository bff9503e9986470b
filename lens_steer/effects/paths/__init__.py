"""Paths: by which components an edit's shift travels to a later site, as a sum and as causes."""
