"""Paired differences between files of completions on the same problems: shares that are right, and who is better.

    python benchmarks/paired.py runs/a/samples/step-00024-test.jsonl runs/b.samples.jsonl ...

The files are those of ``evaluate`` and of a run's ``samples``; every later one is compared with each before it.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from stepalign.evaluation.evaluate import read_samples
from stepalign.evaluation.statistics import bootstrap_mean, paired_difference


def accuracy(file: Path) -> tuple[list[str], np.ndarray]:
    """The problems of a file, and the share of right completions of each."""
    samples = read_samples(file)
    right = [np.mean([verdict == "correct" for verdict in sample.verdicts]) for sample in samples]
    return [sample.problem_id for sample in samples], np.array(right)


def main() -> None:
    files = [Path(word) for word in sys.argv[1:]]
    found = dict(zip(files, map(accuracy, files), strict=True))
    letter = dict(zip(files, ascii_uppercase, strict=False))
    print("| | file | problems | right, % |\n| --- | --- | --- | --- |")
    for file, (problems, right) in found.items():
        mean = bootstrap_mean(right, share=True)
        share = f"{100 * mean.value:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
        print(f"| {letter[file]} | {file} | {len(problems)} | {share} |")
    print("\n| difference | points | p |\n| --- | --- | --- |")
    for before, after in combinations(files, 2):
        (names, b), (others, a) = found[before], found[after]
        if names != others:
            sys.exit(f"{before} and {after} are not about the same problems in the same order")
        d = paired_difference(a, b, share=True)
        interval = f"{100 * d.difference:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        print(f"| {letter[after]} - {letter[before]} | {interval} | {d.p_value:.4f} |")


if __name__ == "__main__":
    main()
