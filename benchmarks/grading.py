"""Grading: throughput on honest answers, cost of hostile ones, agreement with labels and with a second grader.

    python benchmarks/grading.py [--gsm8k FOLDER] [--pairs 10000]

Prints Markdown; docs/results/grading.md holds a recorded run. Peak memory is read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

from stepalign.domains.math.grading import Grader, GraderConfig

PAIRS = Path(__file__).parents[1] / "tests" / "domains"
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
HOSTILE = {
    "tower 7^(10^8)": "7^{10^8}",
    "tower 9^9^9^9": "9^{9^{9^{9}}}",
    "tower 10^10^10": "10^{10^{10}}",
    "tower of eight twos": "2^{2^{2^{2^{2^{2^{2^{2}}}}}}}",
    "factorial of 10^9": "(10^9)!",
    "nested factorials": "((((9!)!)!)!)!",
    "sum of 10^9 terms": "\\sum_{k=1}^{10^9} \\frac{1}{k}",
    "product of 10^9 factors": "\\prod_{k=1}^{10^9} k",
    "huge binomial": "\\binom{10^9}{5\\cdot 10^8}",
    "hard integral": "\\int_0^1 x^{x^{x^{x}}} dx",
    "ten towers in a list": ",".join(["9^{9^{9^{9}}}"] * 10),
    "60 nested roots": "\\sqrt{" * 60 + "7" + "}" * 60,
    "60 nested parentheses": "(" * 60 + "8+x" + ")" * 60,
    "10,000 nested braces": "{" * 10_000 + "7" + "}" * 10_000,
    "1 MB of digits": "7" * 1_000_000,
    "1 MB of backslashes": "\\" * 1_000_000,
    "control characters": "\x007\x1b[2J\u202e",
    "500 control words": "\\a" * 250,
}
WHOLE_TEXTS = {
    "100,000 different boxes": "".join(f"\\boxed{{{i}}}" for i in range(100_000)),
    "1 MB of opening braces": "\\boxed{" + "{" * 1_000_000,
    "1 MB of opening boxes": "\\boxed{" * 150_000,
    "1 MB of answer tags": "<answer>" * 125_000,
    "1 MB of line starts": "A:\n" * 330_000,
    "empty": "",
    "gold outside the box": "The answer is 7. 7 7 7 \\boxed{8} 7",
}


def honest_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(completion, expected): half plain numbers, the rest fractions, units, tuples, expressions; two thirds right."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        a, b, c = rng.randrange(2, 999), rng.randrange(2, 99), rng.randrange(2, 30)
        wrong = rng.randrange(3) == 0
        d = a + wrong
        kinds = [
            (f"{a:,}", f"{d}"),
            (f"{a}", f"{d}.0"),
            (f"{a}", f"\\${d}"),
            (f"{a}", f"{d}"),
            (f"{a}.5", f"{d}.50"),
            (f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{2 * d}}}{{{2 * b}}}"),
            (f"{a}", f"{d}\\text{{ cm}}^2"),
            (f"({a},{b})", f"({d}, {b}.0)"),
            (f"{a}\\sqrt{{{c * c * 2}}}", f"{d * c}\\sqrt{{2}}"),
            (f"(x+{a})(x-{b})", f"x^2+{d - b}x-{d * b}"),
        ]
        expected, answer = kinds[rng.randrange(len(kinds))]
        pairs.append((f"Let us see.\n\nSo the result is $\\boxed{{{answer}}}$.", expected))
    return pairs


def peak_of_children(stop: threading.Event, peaks: list[int]) -> None:
    """The largest resident size that any child of this process reaches, sampled every 5 ms."""
    tasks = Path("/proc/self/task")
    while not stop.wait(0.005):
        try:
            for child in (name for task in tasks.iterdir() for name in (task / "children").read_text().split()):
                for line in Path(f"/proc/{child}/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        peaks.append(int(line.split()[1]) * 1024)
        except (OSError, IndexError):
            continue


def throughput(count: int) -> None:
    pairs = honest_pairs(count)
    slow = [
        ("\\boxed{" + f"\\frac{{x-{i}}}{{x+3}}" + "}", f"1-\\frac{{{i + 3}}}{{x+3}}") for i in range(4, 4 + count // 50)
    ]
    print("## Throughput\n\n| pairs | count | seconds | per second | CPU ms each | verdicts |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, work in (("honest mix", pairs), ("every one needs math-verify", slow)):
        with Grader() as grader:
            grader.grade_many(["\\boxed{\\sin x}"] * 4, [f"\\cos {i}x" for i in range(4)])  # start the children
            start, cpu = time.perf_counter(), cpu_seconds()
            grades = grader.grade_many(*zip(*work, strict=True))
            seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        verdicts = ", ".join(
            f"{count} {verdict}" for verdict, count in Counter(g.verdict for g in grades).most_common()
        )
        rate, each = len(work) / seconds, 1000 * cpu / len(work)
        print(f"| {name} | {len(work)} | {seconds:.1f} | {rate:.0f} | {each:.2f} | {verdicts} |")


def cpu_seconds() -> float:
    """CPU time of this process and of its children so far: what a busy machine does not distort."""
    total = time.process_time()
    for child in (
        name for task in Path("/proc/self/task").iterdir() for name in (task / "children").read_text().split()
    ):
        fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def hostile() -> None:
    print("\n## Hostile answers (expected: 7)\n\n| answer | verdict | reason | seconds |\n| --- | --- | --- | --- |")
    stop, peaks = threading.Event(), [0]
    watcher = threading.Thread(target=peak_of_children, args=(stop, peaks))
    watcher.start()
    slowest = 0.0
    accepted = 0
    with Grader() as grader:
        grader.compare("\\sin x", "\\cos x")
        texts = {name: f"\\boxed{{{answer}}}" for name, answer in HOSTILE.items()} | WHOLE_TEXTS
        for name, text in texts.items():
            expected = "1,2,3,4,5,6,7,8,9,10" if "list" in name else "7"
            start = time.perf_counter()
            grade = grader.grade(text, expected)
            seconds = time.perf_counter() - start
            slowest = max(slowest, seconds)
            accepted += grade.verdict == "correct"
            print(f"| {name} | {grade.verdict} | {grade.reason} | {seconds:.2f} |")
    stop.set()
    watcher.join()
    print(f"\nFalse accepts: {accepted}. Slowest: {slowest:.2f} s. Largest child: {max(peaks) / 2**20:.0f} MiB.")


def agreement(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "model_solutions.jsonl").read_text(encoding="utf-8").splitlines()]
    start = time.perf_counter()
    with Grader() as grader:
        grades = grader.grade_many((row["solution"] for row in rows), (row["reference"] for row in rows))
    seconds = time.perf_counter() - start
    different = [i for i, row in enumerate(rows) if (grades[i].verdict == "correct") != row["is_correct"]]
    print(f"\n## GSM8K: {len(rows)} labelled attempts\n")
    print(f"Agreement with the labels: {len(rows) - len(different)} of {len(rows)} ({seconds:.2f} s).")
    for i in different:
        print(f"- row {i}: label {rows[i]['is_correct']}, {grades[i]}")
    print(
        "Reasons: "
        + ", ".join(f"{n} x {reason}" for reason, n in Counter(g.reason for g in grades).most_common())
        + "."
    )
    second_opinion(rows, [grade.verdict == "correct" for grade in grades])


def second_opinion(rows: list[dict[str, str]], ours: list[bool]) -> None:
    """math-verify by itself, in its default configuration, on the whole text of the attempt."""
    from math_verify import parse, verify

    times, different = [], []
    for i, row in enumerate(rows):
        start = time.perf_counter()
        theirs = verify(parse(row["reference"].rsplit("A:", 1)[-1]), parse(row["solution"]))
        times.append(time.perf_counter() - start)
        if theirs != ours[i]:
            different.append(i)
    print(f"\nAgreement with math-verify on whole texts: {len(rows) - len(different)} of {len(rows)}; ", end="")
    print(f"it takes {1000 * statistics.mean(times):.1f} ms each.")
    for i in different:
        row = rows[i]
        print(f"- row {i}: label {row['is_correct']}, ours {ours[i]}, end of attempt {row['solution'][-40:]!r}, "
              f"expected {row['reference'][-12:]!r}")  # fmt: skip


def field_pairs() -> None:
    """math-verify by itself on the pairs judged by hand, the answer in a box."""
    from math_verify import parse, verify

    print("\n## Pairs in the manner of the field, math-verify by itself\n")
    for name in ("field_honest", "field_hostile"):
        rows = [json.loads(line) for line in (PAIRS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        texts = [row.get("completion") or f"so \\boxed{{{row['answer']}}}." for row in rows]
        pairs = zip(rows, texts, strict=True)
        accepted = sum(verify(parse(f"\\boxed{{{row['expected']}}}"), parse(text)) for row, text in pairs)
        print(f"- {name}: {accepted} of {len(rows)} accepted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, default=GSM8K)
    parser.add_argument("--pairs", type=int, default=10_000)
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(f"{os.cpu_count()} CPU, load {os.getloadavg()[0]:.1f} at the start, {GraderConfig()}\n")
    throughput(arguments.pairs)
    hostile()
    field_pairs()
    if arguments.gsm8k.is_dir():
        agreement(arguments.gsm8k)


if __name__ == "__main__":
    main()
