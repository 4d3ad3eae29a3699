"""The trials of ``benchmarks/faults.py``."""
