"""Learning curves of tiny solvers in environments of several turns, and on free text; docs/results/turns.md.

    python benchmarks/turns.py --out runs/turns            # all curves, three seeds
    python benchmarks/turns.py --out runs/turns --only hindsight --seeds 0
    python benchmarks/turns.py --out runs/turns --table    # of what is there

A finished run is not run again. Times are those of the machine and not compared.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import stepalign as sa

_SHORT = {
    "training.max_steps": 12,
    "evaluation.eval_steps": 6,
    "evaluation.num_samples": 2,
    "data.max_validation": 40,
    "data.test": None,
    "training.save_steps": 0,
}
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
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "tool, GRPO on whole episodes": ("tools", {}),
    "tool, critique of each turn": ("tools", {"condition": "turn_critique", **_ONE}),
    "user, hindsight": ("tools", {"condition": "hindsight", **_USER, **_ONE}),
    "user, GRPO on whole episodes": ("tools", _USER),
    "text, GRPO on the score": ("text", {}),
    "text, StepAlignFB": ("text", {"condition": "stepalign", **_ONE}),
}
"""Name -> shipped recipe, and what is changed in it."""


def run(name: str, seed: int, out: Path) -> Path:
    recipe, changes = CURVES[name]
    folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (folder / "summary.json").exists():
        sa.train(recipe, {**_SHORT, **changes, "training.seed": seed}, out=folder, listener=sa.silent)
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


def table(out: Path) -> str:
    """A row per curve: the mean over seeds at each step, and the smallest and the largest of them."""
    lines = []
    for name in CURVES:
        stem = name.replace(", ", "-").replace(" ", "-")
        curves = [curve(f) for f in sorted(out.glob(f"{stem}-[0-9]")) if (f / "summary.json").exists()]
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
    options = parser.parse_args()
    if not options.table:
        for seed in options.seeds:
            for name in CURVES:
                if options.only in name:
                    run(name, seed, options.out)
    print(table(options.out))


if __name__ == "__main__":
    main()
