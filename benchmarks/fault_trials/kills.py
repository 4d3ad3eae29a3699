"""SIGKILL at random moments: what is resumed ends in the same bits as what was never interrupted."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from fault_trials.lab import RUNS, SMALL, STEPS, Lab, fresh, setting_words

CLOCKS = ("seconds", "seconds_by_phase", "peak_memory_bytes", "timings")
COMPARED = ("rollouts.jsonl", "critiques.jsonl", "contexts.jsonl", "metrics.jsonl", "evaluations.jsonl")


def words_of(kind: str, lab: Lab, out: Path, **settings: Any) -> list[str]:
    words = setting_words({**SMALL, **settings, **RUNS[kind]})
    if kind != "compare":
        return ["train", "arithmetic", "--out", str(out), *words]
    recipe = lab.folder / "compare.toml"
    recipe.write_text(
        (Path(__file__).parents[2] / "recipes" / "arithmetic.toml").read_text().partition("[compare]")[0]
        + '[compare]\nseeds = [0]\n[[compare.arms]]\nname = "grpo"\nset = { condition = "grpo", '
        '"sampling.num_generations" = 4, "training.learning_rate" = 3e-4 }\n[[compare.arms]]\nname = "stepalign"\n'
    )
    return ["compare", str(recipe), "--out", str(out), *words]


def run_folders(out: Path) -> list[Path]:
    return sorted(file.parent for file in out.rglob("metrics.jsonl") if "superseded" not in file.parts)


def kill_trial(lab: Lab, kind: str, whole: Path, seconds: float, seed: int) -> dict[str, Any]:
    """One run, killed once or twice, resumed to its end, beside the one that was never interrupted."""
    rng = random.Random(seed)
    ranks = 2 if kind == "two ranks" else 1
    row: dict[str, Any] = {"kind": kind, "seed": seed, "kills": [], "lost": 0}
    with fresh(lab.folder / "broken") as out:
        words = [*words_of(kind, lab, out), "--resume"]
        if "critic" in str(RUNS[kind]):
            lab.ask_servers("asked")
        for _ in range(rng.choice((1, 1, 2))):
            child = lab.start(words, ranks=ranks)
            moment = rng.uniform(0.02, 1.0) * seconds
            deadline = time.monotonic() + moment
            while time.monotonic() < deadline and not child.has_ended:
                time.sleep(0.005)
            child.kill()
            ended = child.wait()
            row["kills"].append([round(moment, 3), ended.code])
            row["lost"] = max([row["lost"], *(_steps(run) - _saved(run) for run in run_folders(out))])
        deadline = time.monotonic() + 60
        ended = lab.run(words, ranks=ranks)
        while ended.code == 4 and time.monotonic() < deadline:  # runs of a comparison end a moment after it
            time.sleep(0.5)
            ended = lab.run(words, ranks=ranks)
        row |= {"code": ended.code, "traceback": ended.has_traceback, "different": []}
        if ended.code:
            row["err"] = ended.err[-1500:]
        for run in run_folders(whole):
            row["different"] += differences(run, out / run.relative_to(whole), exact=ranks == 1)
        if "critic" in str(RUNS[kind]):
            asked = lab.ask_servers("asked")
            row["paid_twice"] = sum(count - 1 for count in asked.values())
            ledgers = [
                json.loads(line) for file in out.rglob("critic-ledger.jsonl") for line in file.read_bytes().splitlines()
            ]
            row["said_in_flight"] = sum(line["fault"] == "in_flight" for line in ledgers)
        row["left_over"] = sorted(str(p.relative_to(out)) for p in out.rglob(".*") if p.exists())
    return row


def _steps(run: Path) -> int:
    return (run / "metrics.jsonl").read_bytes().count(b"\n")


def _saved(run: Path) -> int:
    return max([int(p.parent.name[5:]) for p in run.glob("checkpoints/step-*/manifest.json")], default=0)


def differences(one: Path, other: Path, *, exact: bool = True) -> list[str]:
    """Names of what differs between two runs: rows and final weights. Sums of two ranks differ in their last bits."""
    import torch
    from safetensors.torch import load_file

    found = []
    for name in COMPARED:
        rows = [
            [_row(line) for line in (run / name).read_bytes().splitlines()] if (run / name).exists() else None
            for run in (one, other)
        ]
        if rows[0] != rows[1] and (exact or not _close(*rows)):
            found.append(f"{one.name}/{name}")
    if (one / "final").exists():
        final = "model.safetensors"
        if not (other / "final" / final).exists():
            return [*found, "final is missing"]
        mine, theirs = (load_file(run / "final" / final) for run in (one, other))
        far = max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
        if far > (0.0 if exact else 1e-7) or not all(torch.equal(mine[n], theirs[n]) or not exact for n in mine):
            found.append(f"{one.name}/final: {far:.1e}")
    samples = [{p.name: p.read_bytes() for p in (run / "samples").glob("*.jsonl")} for run in (one, other)]
    return found + [f"{one.name}/samples"] * (exact and samples[0] != samples[1])


def _row(line: bytes) -> Any:
    row = json.loads(line)
    return {key: value for key, value in row.items() if key not in CLOCKS and key not in ("attempts", "cached")}


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= 1e-5 * max(1.0, abs(one))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_close(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def kills(lab: Lab, number: int, first: int = 0) -> Any:
    """``number`` trials over the kinds in turn, half as many comparisons."""
    single = [kind for kind in RUNS if kind != "compare"]
    kinds = (*single, *single, "compare")  # it costs five times as much
    for trial in range(first, first + number):
        kind = kinds[trial % len(kinds)]
        whole = lab.folder / "whole" / kind.replace(" ", "-")
        took = whole.with_suffix(".seconds")  # else a trial that was ended has left half of it
        if not took.exists():
            shutil.rmtree(whole, ignore_errors=True)
            ended = lab.run(words_of(kind, lab, whole), ranks=2 if kind == "two ranks" else 1)
            assert ended.code == 0, (kind, ended.code, ended.err[-3000:])
            assert all(_steps(run) == STEPS for run in run_folders(whole) if run.name != "base"), kind
            took.write_text(str(ended.seconds))
        yield kill_trial(lab, kind, whole, float(took.read_text()), seed=trial)
