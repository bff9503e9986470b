"""One figure per kind of result, and the look they share."""
