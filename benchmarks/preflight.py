"""Does the verdict of ``stepalign preflight`` before training agree with the gain after it?

    python benchmarks/preflight.py train --out runs/preflight --base shipped     # and "other-facts", "trained"
    python benchmarks/preflight.py judge --out runs/preflight --base shipped
    python benchmarks/preflight.py report --out runs/preflight                   # numbers of the results page

Every arm is one design on one base solver of the embedded task: 16 steps of 16 rollouts, 100 test problems x 4. All
parts may be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepalign import preflight, silent, train
from stepalign.evaluation.evaluate import read_samples
from stepalign.evaluation.statistics import Interval, paired_difference, rank_correlation
from stepalign.report import drawing as pen
from stepalign.storage.files import write_atomically
from stepalign.token_signal.verdict import judge

GROUPS = {"sampling.num_generations": 4, "training.problems_per_step": 4}
ARMS: dict[str, dict[str, Any]] = {
    "step_aligned": {},
    "full_repeat": {},
    "reference": {},
    "answer": {},
    "misses": {"condition": "step_aligned", "critic.quality.misses": 1.0},
    "shuffled": {},
    "majority": GROUPS,
    "fixed_negative": {},
    "marked_correction": {},
    "self_critique": {},
    "verdict": {},
    "second_turn": {},
    "null": {},
    "invents": {"condition": "step_aligned", "critic.quality.invents": 1.0},
    "no_repeat": {},
    "paraphrase": {},
    "quotes": {"condition": "step_aligned", "critic.quality.quotes_wrong": 1.0},
    "peer_demonstration": GROUPS,
    "hint": {},
    "contrast": GROUPS,
    "half_missed": {"condition": "step_aligned", "critic.quality.misses": 0.5},
    "worked_example": {},
}
"""Name of an arm -> the keys in which it differs; its condition is its name unless one is given."""
NUM = 48
"""Rollouts of a look."""
SHARED = {
    "training.max_steps": 16,
    "training.problems_per_step": 16,
    "training.save_steps": 0,
    "evaluation.num_samples": 4,
    "evaluation.eval_steps": 0,
    "evaluation.at_start": False,
    "data.validation": None,
    "data.max_test": 100,
    "guards.policy": "warn",
}
FACTS = {"other-facts": 3, "third-facts": 11, "fourth-facts": 23, "fifth-facts": 31}
"""Base -> seed of the weak facts that the embedded solver is taught for a while."""
STEPS = {"trained": (8, 7), "trained-more": (16, 11)}
"""Base -> steps of StepAlignFB, and their seed."""
BASES = ("shipped", *FACTS, *STEPS)
RULES_AFTER = {
    ("shipped", "other-facts", "trained"): {"often_wrong_itself", "leaves_out_hard_ones"},
    ("third-facts", "trained-more"): {"leaves_out_hard_ones"},
    ("fourth-facts", "fifth-facts"): set[str](),
}
"""Bases -> rules of the verdict that were written after the gains of their arms had been seen."""
EARLY = {
    (base, arm)
    for base in ("shipped", "other-facts", "trained")
    for arm in (
        *("step_aligned", "marked_correction", "reference", "answer", "verdict", "full_repeat", "majority", "shuffled"),
        *("misses", "quotes", "null"),
    )
} | {
    ("shipped", "self_critique"),
    ("shipped", "fixed_negative"),
    ("trained", "fixed_negative"),
    ("trained", "paraphrase"),
    ("trained", "second_turn"),
}
"""The 38 arms whose gains had been seen when all other rules were written."""


def make_base(out: Path, name: str) -> str:
    """The model path of a base solver, made where it is not there yet."""
    folder = out / "bases" / name
    if name == "shipped":
        return "embedded:arithmetic"
    if not (folder / "config.json").exists():
        if name in STEPS:
            steps, seed = STEPS[name]
            keys = {**SHARED, "training.max_steps": steps, "data.test": None, "training.seed": seed}
            return str(train("arithmetic", keys, out=folder, listener=silent, resume=True).weights)
        _teach_other_facts(folder, FACTS[name])
    return str(folder)


def _teach_other_facts(folder: Path, seed: int, num_steps: int = 80) -> None:
    """The shipped weights after some steps of the warm start with another set of weak facts."""
    import random

    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "dev"))
    import corpus
    import make_embedded
    from stepalign import load_solver
    from stepalign.models.load import save_solver

    torch.set_num_threads(1)
    solver = load_solver("embedded:arithmetic")
    phase = make_embedded.WarmStart().phases[-1]
    knowledge, rng = corpus.draw_knowledge(seed), random.Random(seed)
    optimizers = make_embedded.optimizers_of(solver, 1e-3, 0.01)
    solver.model.train()
    for step in range(num_steps):
        batch = make_embedded.draw_batch(rng, knowledge, phase, step, 32)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 10, (num_steps - step) / 20)
        rows = {kind: make_embedded.encode(solver, examples) for kind, examples in batch.items()}
        make_embedded.train_step(solver, rows, optimizers)
    solver.model.eval()
    save_solver(solver, folder)


def arm_keys(arm: str, model: str) -> dict[str, Any]:
    return {**SHARED, "condition": arm, **ARMS[arm], "model.path": model}


def train_arms(out: Path, base: str, arms: list[str]) -> None:
    model = make_base(out, base)
    start = {**SHARED, "model.path": model, "training.max_steps": 0, "evaluation.at_start": True}
    for arm, keys in {"untrained": start, **{arm: arm_keys(arm, model) for arm in arms}}.items():
        folder = out / "arms" / base / arm
        if not (folder / "summary.json").exists():
            train("arithmetic", keys, out=folder, listener=silent, resume=True)
        print(base, arm, f"{100 * accuracy(folder).mean():.1f}", flush=True)


def judge_arms(out: Path, base: str, arms: list[str]) -> None:
    """One look at all plain designs, one at those that show siblings, one for every other critic."""
    model = make_base(out, base)
    plain = [arm for arm in arms if not ARMS[arm]]
    siblings = [arm for arm in arms if ARMS[arm] is GROUPS]
    calls = {"plain": plain, "siblings": siblings} | {arm: ["step_aligned"] for arm in arms if "condition" in ARMS[arm]}
    for name, designs in ((name, designs) for name, designs in calls.items() if designs):
        folder = out / "verdicts" / base / name
        if not (folder / "preflight.json").exists():
            keys = {**SHARED, **ARMS.get(name, {}), "condition": designs[0], "model.path": model}
            keys |= GROUPS if name == "siblings" else {}
            preflight("arithmetic", keys, out=folder, designs=designs, num=NUM, listener=silent)
        print(base, name, "judged", flush=True)


def verdicts(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(base, arm) -> its entry in preflight.json."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in sorted(out.glob("verdicts/*/*/preflight.json")):
        base, call = file.parts[-3:-1]
        for design, row in json.loads(file.read_text(encoding="utf-8"))["designs"].items():
            found[base, design if call in ("plain", "siblings") else call] = row
    return found


def accuracy(folder: Path) -> np.ndarray:
    """[P], the share of right completions of every test problem after the last step."""
    newest = max((folder / "samples").glob("step-*-test.jsonl"))
    return np.array([np.mean([verdict == "correct" for verdict in one.verdicts]) for one in read_samples(newest)])


def gains(out: Path) -> dict[tuple[str, str], Any]:
    """(base, arm) -> paired difference of Avg@4 from the untrained solver, over test problems."""
    found = {}
    for summary in sorted(out.glob("arms/*/*/summary.json")):
        base, arm = summary.parts[-3:-1]
        start = out / "arms" / base / "untrained"
        if arm != "untrained" and (start / "summary.json").exists():
            found[base, arm] = paired_difference(accuracy(summary.parent), accuracy(start))
    return found


NUMBERS = ("gain_at_spikes", "wrong_token", "wrong_step", "gain_where_wrong", "gain", "right_token_size", "strength")
"""Numbers before training that might predict the gain after it."""


def report(out: Path) -> None:
    """One line an arm, the rank correlations, the verdicts against the gains - apart for the arms that were trained
    after the rules were written - and the figure."""
    found, after = verdicts(out), gains(out)
    arms = sorted(found.keys() & after.keys(), key=lambda arm: (-after[arm].difference, arm))
    rows, firsts = [], []
    print(
        "| base | arm | verdict | help where wrong | at spikes | A on wrong tokens | gain |",
        "|---|---|---|---|---|---|---|",
        sep="\n",
    )
    for base, arm in arms:
        numbers = {name: Interval(**_filled(number)) for name, number in found[base, arm]["numbers"].items()}
        word, reasons = judge(numbers, has_teacher="gain" in numbers or "covered" in numbers)
        doubts = {reason.rule for reason in reasons if reason.severity == "doubtful"}
        late = next(rules for bases, rules in RULES_AFTER.items() if base in bases)
        first = "go" if word == "doubtful" and doubts <= late else word
        gain = after[base, arm]
        rows.append((word, numbers, gain))
        firsts.append((base, arm, word, first, gain))
        shown = {"gain_where_wrong": 100, "gain_at_spikes": 100, "wrong_token": 1}
        words = " | ".join(_text(numbers.get(name), scale) for name, scale in shown.items())
        print(f"| {base} | {arm} | {word} | {words} | {_text(Interval(gain.difference, gain.low, gain.high), 100)} |")
    for name in NUMBERS:
        pairs = [(numbers[name].value, gain.difference) for _, numbers, gain in rows if name in numbers]
        x, y = zip(*pairs, strict=True)
        print(_correlation(name, x, y))
    order = {"no": 0, "doubtful": 1, "go": 2}
    print(_correlation("verdict", [order[word] for word, _, _ in rows], [gain.difference for _, _, gain in rows]))
    three, two, last = RULES_AFTER
    groups = {
        "the first 38 arms, without the late rules": [(w, g) for b, a, _, w, g in firsts if (b, a) in EARLY],
        "held out: 28 more on these bases, without the late rules": [
            (w, g) for b, a, _, w, g in firsts if b in three and (b, a) not in EARLY
        ],
        "held out: third-facts and trained-more, without the last rule": [
            (w, g) for b, _, _, w, g in firsts if b in two
        ],
        "all these arms, all rules": [(w, g) for b, _, w, _, g in firsts if b not in last],
        "held out: fourth-facts and fifth-facts, all rules": [(w, g) for b, _, w, _, g in firsts if b in last],
    }
    for title, found_words in groups.items():
        if not found_words:
            continue
        print(title)
        words, differences = zip(*((order[word], gain.difference) for word, gain in found_words), strict=True)
        print(_correlation("  verdict", words, differences))
        for word in order:
            of_word = [gain for verdict, gain in found_words if verdict == word]
            signs = [sum(g.low > 0 for g in of_word), sum(g.high < 0 for g in of_word)]
            mean = f", mean {100 * np.mean([g.difference for g in of_word]):+.1f}" if of_word else ""
            print(f"  {word}: {len(of_word)} arms{mean}; {signs[0]} surely gain, {signs[1]} surely lose")
    write_atomically(Path("docs/images/preflight.svg"), figure(rows))


def _correlation(name: str, x: Sequence[float], y: Sequence[float]) -> str:
    rho = rank_correlation(x, y)
    spread = f"[{rho.low:+.2f}, {rho.high:+.2f}]"
    return f"{name}: rank correlation {rho.value:+.2f} {spread}, p = {rho.p_value:.4f}, {len(x)} arms"


def _filled(number: dict[str, Any]) -> dict[str, float]:
    return {key: float("nan") if value is None else value for key, value in number.items()}


def _text(number: Interval | None, scale: float) -> str:
    if number is None:
        return ""
    digits = 1 if scale == 100 else 2
    spread = (
        "" if number.low != number.low else f" [{scale * number.low:+.{digits}f}, {scale * number.high:+.{digits}f}]"
    )
    return f"{scale * number.value:+.{digits}f}{spread}"


def figure(rows: list[tuple[str, dict[str, Interval], Any]]) -> str:
    """Gain after training over what the self-teacher's tokens add at the strongest places, coloured by the verdict."""
    points = [(w, n["gain_at_spikes"].value, g) for w, n, g in rows if "gain_at_spikes" in n]
    frame = pen.Frame(left=60, top=20, width=520, height=300, x_low=-0.6, x_high=0.6, y_low=-0.47, y_high=0.4)
    grid = 'stroke="#e3e1da"'
    parts = []
    for tick in (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3):
        parts += [pen.line("grid", frame.left, frame.y(tick), frame.right, frame.y(tick), grid)]
        parts += [pen.words_at(frame.left - 8, frame.y(tick) + 4, f"{100 * tick:+.0f}", "tick", "end")]
    for tick in (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6):
        parts += [pen.line("grid", frame.x(tick), frame.top, frame.x(tick), frame.bottom, grid)]
        parts += [pen.words_at(frame.x(tick), frame.bottom + 18, f"{100 * tick:+.0f}", "tick", "middle")]
    colours = {"no": 3, "doubtful": 1, "go": 0}
    for word, x, gain in points:
        at = frame.x(x), frame.y(gain.difference)
        parts += [pen.line("interval", at[0], frame.y(gain.low), at[0], frame.y(gain.high), 'stroke="#b8b4a9"')]
        parts += [pen.marker(colours[word], *at, 4.5, word)]
    for index, (word, colour) in enumerate(colours.items()):
        x = frame.left + 12 + 100 * index
        parts += [pen.marker(colour, x, 34, 4.5), pen.words_at(x + 9, 38, word, "legend")]
    across = "before training: points that the self-teacher's token adds at the strongest tokens"
    parts += [pen.words_at(frame.right, frame.bottom + 38, across, "axis-name", "end")]
    parts += [pen.words_at(4, 14, "after training: gain in Avg@4, points", "axis-name")]
    return pen.svg(parts, 600, 370, "Gain after training over a number before it", "chart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "judge", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", choices=BASES, default="shipped")
    parser.add_argument("--arms", default=",".join(ARMS))
    options = parser.parse_args()
    if options.part == "judge":
        judge_arms(options.out, options.base, options.arms.split(","))
    elif options.part == "report":
        report(options.out)
    else:
        train_arms(options.out, options.base, options.arms.split(","))


if __name__ == "__main__":
    main()
