"""Token-level analysis: what a context teaches, and where."""
