"""Paired differences between files of completions on the same problems: shares that are right, and who is better.

    python benchmarks/paired.py runs/a/samples/step-00024-test.jsonl runs/b.samples.jsonl ...

The files are those of ``evaluate`` and of a run's ``samples``; every later one is compared with each before it, on the
problems that both have.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from stepalign.evaluation.evaluate import read_samples
from stepalign.evaluation.statistics import bootstrap_mean, paired_difference


def accuracy(file: Path) -> dict[str, float]:
    """Problem -> the share of its completions that are right."""
    return {s.problem_id: float(np.mean([v == "correct" for v in s.verdicts])) for s in read_samples(file)}


def main() -> None:
    files = [Path(word) for word in sys.argv[1:]]
    found = dict(zip(files, map(accuracy, files), strict=True))
    letter = dict(zip(files, ascii_uppercase, strict=False))
    print("| | file | problems | right, % |\n| --- | --- | --- | --- |")
    for file, right in found.items():
        mean = bootstrap_mean(list(right.values()), share=True)
        share = f"{100 * mean.value:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
        print(f"| {letter[file]} | {file} | {len(right)} | {share} |")
    print("\n| difference | problems | points | p |\n| --- | --- | --- | --- |")
    for before, after in combinations(files, 2):
        both = [name for name in found[before] if name in found[after]]
        a, b = ([found[file][name] for name in both] for file in (after, before))
        d = paired_difference(a, b, share=True)
        interval = f"{100 * d.difference:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        print(f"| {letter[after]} - {letter[before]} | {len(both)} | {interval} | {d.p_value:.4f} |")


if __name__ == "__main__":
    main()
