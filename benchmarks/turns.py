"""Learning curves of tiny solvers in environments of several turns, and on free text; docs/results/turns.md.

    python dev/make_programmer.py --out build/programmer   # the solver of the curves that write Python
    python benchmarks/turns.py --out runs/turns            # all curves, three seeds
    python benchmarks/turns.py --out runs/turns --only hindsight --seeds 0
    python benchmarks/turns.py --out runs/turns --table    # of what is there
    python benchmarks/turns.py --out runs/turns --domains  # step-aligned critiques against the others, domain by domain

A finished run is not run again. Times are those of the machine and not compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stepalign as sa
from stepalign.evaluation.comparison import Evaluations
from stepalign.evaluation.statistics import paired_difference

PROGRAMMER = "build/programmer"

_SHORT = {
    "training.max_steps": 12,
    "evaluation.eval_steps": 6,
    "evaluation.num_samples": 2,
    "data.max_validation": 40,
    "data.test": None,
    "training.save_steps": 0,
    "guards.policy": "warn",  # a curve that breaks down is a result here
}
_EQUAL = {
    "condition": "grpo",
    "sampling.num_generations": 4,
    "training.problems_per_step": 4,
    "training.learning_rate": 3e-4,
}
"""As many rollouts a step as the arms with a self-teacher."""
_TOOLS = {"training.max_steps": 6}
_ONE = {"sampling.num_generations": 1, "training.problems_per_step": 16, "training.learning_rate": 1e-3}
_USER = {
    "environment": {
        "kind": "user",
        "max_turns": 2,
        "max_turn_length": 64,
        "messages": ["{% if verdict != 'correct' %}Feedback : {{ reference }}{% endif %}"],
    },
    "sampling.max_completion_length": 192,
}
_PYTHON = {"model.path": f"{PROGRAMMER}/solver", "sampling.temperature": 1.0}
_CALLS = {
    **_PYTHON,
    **{f"data.{name}": f"{PROGRAMMER}/tool-{name}.jsonl" for name in ("train", "validation")},
    "environment": {"kind": "python_tool", "max_turns": 3, "max_turn_length": 64},
    "sampling.max_completion_length": 144,
}
_PROGRAMS = {
    **_PYTHON,
    **{f"data.{name}": f"{PROGRAMMER}/code-{name}.jsonl" for name in ("train", "validation")},
    "data.columns": "python",
    "environment": {"kind": "single"},
    "sampling.max_completion_length": 64,
}
_ALIGNED = {"condition": "dev/programs.py:aligned"}
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "tool, GRPO on whole episodes": ("tools", {**_TOOLS, **_EQUAL}),
    "tool, critique of each turn": ("tools", {"condition": "turn_critique", **_TOOLS, **_ONE}),
    "tool, RefSol": ("tools", {"condition": "refsol", **_TOOLS, **_ONE}),
    "python tool, GRPO": ("tools", {**_EQUAL, **_CALLS}),
    "python tool, RefSol": ("tools", {"condition": "refsol", **_ONE, **_CALLS}),
    "python tool, StepAlignFB": ("tools", {**_ALIGNED, **_ONE, **_CALLS}),
    "python, GRPO": ("tools", {**_EQUAL, **_PROGRAMS}),
    "python, RefSol": ("tools", {"condition": "refsol", **_ONE, **_PROGRAMS}),
    "python, StepAlignFB": ("tools", {**_ALIGNED, **_ONE, **_PROGRAMS}),
    "user, hindsight": ("tools", {"condition": "hindsight", **_USER, **_ONE}),
    "text, GRPO on the score": ("text", _EQUAL),
    "text, RefSol": ("text", {"condition": "refsol", **_ONE}),
    "text, StepAlignFB": ("text", {"condition": "stepalign", **_ONE}),
    "arithmetic, GRPO": ("arithmetic", _EQUAL),
    "arithmetic, RefSol": ("arithmetic", {"condition": "refsol", **_ONE}),
    "arithmetic, StepAlignFB": ("arithmetic", {"condition": "stepalign", **_ONE}),
}
"""Name -> shipped recipe, and what is changed in it."""


DOMAINS = {
    "arithmetic": ("arithmetic, StepAlignFB", "arithmetic, RefSol", "arithmetic, GRPO"),
    "tool": ("tool, critique of each turn", "tool, RefSol", "tool, GRPO on whole episodes"),
    "python tool": ("python tool, StepAlignFB", "python tool, RefSol", "python tool, GRPO"),
    "python": ("python, StepAlignFB", "python, RefSol", "python, GRPO"),
    "text": ("text, StepAlignFB", "text, RefSol", "text, GRPO on the score"),
}
"""Domain -> its step-aligned arm, RefSol, GRPO."""


def run(name: str, seed: int, out: Path) -> Path:
    recipe, changes = CURVES[name]
    folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (folder / "summary.json").exists():
        sa.train(
            recipe, {**_SHORT, **changes, "training.seed": seed}, out=folder, resume=folder.exists(), listener=sa.silent
        )
        print(f"{folder} done", flush=True)
    return folder


def curve(folder: Path) -> dict[int, float]:
    """Avg@n on the validation problems by step, of texts their mean score."""
    is_text = folder.name.startswith("text")
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        row["step"]: one["value"]
        for row in rows
        for one in row["metrics"]
        if row["set"] == "validation" and one["metric"] == ("mean_score" if is_text else f"avg@{one['n']}")
    }


def finished(name: str, out: Path) -> list[Path]:
    """The finished runs of a curve, by their seeds."""
    stem = name.replace(", ", "-").replace(" ", "-")
    return [folder for folder in sorted(out.glob(f"{stem}-[0-9]")) if (folder / "summary.json").exists()]


def last(folder: Path) -> NDArray[np.float64]:
    """The values of the validation problems at the last step."""
    found = Evaluations(folder, (1, 2)).metrics
    step, name = max(key for key in found if key[1] == "validation")
    metrics = found[step, name]
    return metrics["mean_score" if folder.name.startswith("text") else "avg@2"].per_problem


def domains(out: Path) -> str:
    """Per domain the value of each arm at its end, and what the step-aligned arm has more, with 95 % intervals that
    draw seeds and problems."""
    lines = ["| domain | seeds | StepAlignFB | RefSol | GRPO | - RefSol | - GRPO |", "| --- " * 7 + "|"]
    for domain, names in DOMAINS.items():
        runs = [finished(name, out) for name in names]
        seeds = min(map(len, runs))
        if not seeds:
            continue
        values = [np.stack([last(folder) for folder in folders[:seeds]]) for folders in runs]
        pairs = [paired_difference(values[0], other) for other in values[1:]]
        cells = [f"{found.mean():.1%}" for found in values]
        cells += [f"{100 * p.difference:+.1f} ({100 * p.low:+.1f} to {100 * p.high:+.1f})" for p in pairs]
        lines.append(f"| {domain} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(out: Path) -> str:
    """A row per curve: the mean over seeds at each step, and the smallest and the largest of them."""
    lines = []
    for name in CURVES:
        curves = [curve(folder) for folder in finished(name, out)]
        if not curves:
            continue
        cells = []
        for step in sorted(curves[0]):
            values = [one[step] for one in curves]
            mean = sum(values) / len(values)
            cells.append(f"{step}: {mean:.1%} ({min(values):.1%} to {max(values):.1%})")
        lines.append(f"| {name} | {len(curves)} | {'; '.join(cells)} |")
    head = "| curve | seeds | step: Avg@2, of texts the mean score, of 40 validation problems (smallest to largest) |"
    return "\n".join([head, "| --- | --- | --- |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="curves whose name holds this")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--domains", action="store_true")
    options = parser.parse_args()
    if not (options.table or options.domains):
        for seed in options.seeds:
            for name in CURVES:
                if options.only in name:
                    run(name, seed, options.out)
    print(domains(options.out) if options.domains else table(options.out))


if __name__ == "__main__":
    main()
