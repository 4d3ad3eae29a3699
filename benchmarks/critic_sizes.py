"""Critics of several sizes over the same attempts, whose first wrong step a person has marked; docs/results/critics.md.

    transformers serve FOLDER --port 8000 --device cpu     # or vLLM, or any other server
    python benchmarks/critic_sizes.py --out runs/sizes --critic calculation
    python benchmarks/critic_sizes.py --out runs/sizes --critic http://127.0.0.1:8000/v1=FOLDER

Attempts of a 6B model at GSM8K (tests/data/gsm8k): all that have a mark, and as many right ones. A row per critic; a
folder that is there goes on where it was. The marks are those of attempts that the calculation critic corrects.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SOLUTIONS = Path(__file__).parents[1] / "tests" / "data" / "gsm8k" / "model_solutions.jsonl"


def write_attempts(path: Path, num: int | None) -> dict[str, str]:
    """Write the attempts; return the marked step of each by its id, "" for right ones."""
    rows = [json.loads(line) for line in SOLUTIONS.read_text(encoding="utf-8").splitlines()]
    wrong = [row for row in rows if row["first_error"]][:num]
    chosen = [*wrong, *[row for row in rows if row["is_correct"]][: len(wrong)]]
    with path.open("w", encoding="utf-8") as file:
        for place, row in enumerate(chosen):
            answer = row["reference"].rpartition("A:")[2].strip()
            shown = {"question": row["question"], "reference": row["reference"], "answer": answer}
            file.write(json.dumps({"rollout_id": str(place), **shown, "completion": row["solution"]}) + "\n")
    return {str(place): row["first_error"] for place, row in enumerate(chosen)}


def table_row(folder: Path, name: str, marks: dict[str, str]) -> str:
    critiques = [json.loads(line) for line in (folder / "critiques.jsonl").read_text(encoding="utf-8").splitlines()]
    usable = [one for one in critiques if one["status"] == "ok"]

    def count(found: list[dict[str, Any]], of: int) -> str:
        return f"{len(found)} of {of}"

    wrong = [one for one in usable if marks[one["rollout_id"]]]
    right = [one for one in usable if not marks[one["rollout_id"]]]
    cells = [
        count(usable, len(critiques)),
        count([one for one in wrong if one["first_error"] == marks[one["rollout_id"]]], len(wrong)),
        count([one for one in wrong if (one["alignment"] or {}).get("answer_right")], len(wrong)),
        count([one for one in right if not one["findings"]], len(right)),
        count([one for one in usable if one["findings"]], len(usable)),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--critic", action="append", required=True, help='"calculation", or URL=NAME of a served model')
    parser.add_argument("--num", type=int, help="wrong attempts, and as many right ones")
    parser.add_argument("--set", action="append", default=[], help="keys of the recipe, for the served ones")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    marks = write_attempts(options.out / "attempts.jsonl", options.num)
    print("| critic | usable | marked step found | led to the right answer | right ones left alone | with findings |")
    print("| --- " * 6 + "|")
    for critic in options.critic:
        url, _, model = critic.partition("=")
        folder = options.out / (Path(model).name or url)
        words = ["--critic", url, "--out", str(folder), *(["--model", model] if model else [])]
        words += [word for key in options.set if model for word in ("--set", key)]
        command = [sys.executable, "-m", "stepalign", "critique", str(options.out / "attempts.jsonl"), *words]
        done = subprocess.run([*command, *(["--resume"] if folder.exists() else [])], stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 1):  # 1: no critique is usable, which is a result here
            sys.exit(done.returncode)
        print(table_row(folder, Path(model).name or url, marks), flush=True)


if __name__ == "__main__":
    main()
