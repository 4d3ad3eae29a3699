"""Numbers with intervals: exact sampling metrics, bootstrap intervals, paired comparisons. Needs no torch."""
