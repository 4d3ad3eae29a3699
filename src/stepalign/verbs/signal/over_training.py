"""``stepalign signal RUN --checkpoints all``: the same rollouts scored at the start and at every saved checkpoint."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.evaluation import canaries
from stepalign.events import Listener, line, silent
from stepalign.report.page import write_token_page
from stepalign.storage.files import finite, read_json, step_folders, step_of, write_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.sums import check_sums
from stepalign.token_signal.files import PAGE_DATA, read_completions
from stepalign.token_signal.summary import summarise
from stepalign.token_signal.table import ScoredCompletion
from stepalign.verbs.signal.from_run import analyse_run

Points = dict[int, float]


def analyse_checkpoints(
    run: Path,
    out: Path,
    which: str,
    *,
    contexts: tuple[str, ...] = (),
    num: int | None = None,
    settings: Iterable[str] = (),
    listener: Listener = silent,
) -> Path:
    """Score a run's first rollouts at several checkpoints, each into ``out/step-NNNNN``, and write one page of all.

    Args:
        which: "all", or steps separated by commas; 0 is the untrained solver.
        contexts, num, settings: as for ``analyse_run``; the work goes on where it stopped.

    Raises:
        ConfigError: no checkpoint, or one that is not there; whatever ``analyse_run`` raises.
    """
    models = _models(run, which)
    folders = {}
    for step, model in models.items():
        listener(line(f"step {step}: {model or 'the untrained solver'}"))
        folders[step] = out / f"step-{step:05d}"
        options = {"contexts": contexts, "num": num, "settings": settings, "listener": listener}
        analyse_run(run, folders[step], model=model, **options)
    signals = {step: read_json(folder / PAGE_DATA) for step, folder in folders.items()}
    scales = [
        {"name": f"{one['name']}@{step}", "label": f"{one['label']}, step {step}", "of": one["name"], "step": step}
        for step, signal in signals.items()
        for one in signal["contexts"]
    ]
    first = next(iter(signals.values()))
    head = {
        key: first[key]
        for key in ("format", "temperature", "unit", "definition", "prompts", "source", "other_teacher")
        if key in first
    }
    head["model"] = f"{len(models)} checkpoints of {run}"
    shown = max(1, len(first["rollouts"]))
    labels = {one["name"]: one["label"] for one in scales}
    signal = summarise(lambda: _merged(folders), head, labels, num_shown=shown)
    curves = [*_localisation_curves(signal["localisation"], scales), *training_curves(run)]
    signal = finite({**signal, "contexts": scales, "over_training": curves})
    write_json(out / PAGE_DATA, signal, indent=None)
    return write_token_page(signal, out / "index.html")


def _models(run: Path, which: str) -> dict[int, str]:
    """Step -> what scores, "" for the untrained solver."""
    there = {step_of(folder): str(folder) for folder in step_folders(run / "checkpoints")}
    known = {0: "", **there}
    wanted = list(known) if which == "all" else [int(text) for text in which.split(",") if text.strip().isdigit()]
    missing = [step for step in wanted if step not in known]
    if missing or not there or not wanted:
        raise ConfigError(
            f"there is no checkpoint of step {missing[0]}" if missing else "the run has kept no checkpoints",
            where=str(run / "checkpoints"),
            hint=f"--checkpoints all, or of {', '.join(map(str, known))}"
            if there
            else "train with --set training.save_steps=N --set training.save_total_limit=M",
        )
    return {step: known[step] for step in sorted(wanted)}


def _merged(folders: Mapping[int, Path]) -> Iterator[ScoredCompletion]:
    """The completions of all folders, with the tables of all steps. Raises ValueError where the folders differ."""
    for at_steps in zip(*(read_completions(folder) for folder in folders.values()), strict=True):
        tables = {
            f"{name}@{step}": replace(table, context=f"{name}@{step}")
            for step, one in zip(folders, at_steps, strict=True)
            for name, table in one.tables.items()
        }
        yield replace(at_steps[0], tables=tables)


def _localisation_curves(
    localisation: Sequence[Mapping[str, Any]], scales: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One chart per number of the localisation table: a line per design over the steps."""
    numbers: dict[str, dict[str, list[tuple[int, Mapping[str, Any]]]]] = defaultdict(lambda: defaultdict(list))
    facts = {one["name"]: one for one in scales}
    for entry in localisation:
        about = facts[entry["context"]]
        for number in entry["numbers"]:
            numbers[number["name"]][about["of"]].append((about["step"], number))
    return [
        {
            "number": name,
            "lines": [
                {"label": design, "x": [step for step, _ in points], **_columns([number for _, number in points])}
                for design, points in lines.items()
            ],
        }
        for name, lines in numbers.items()
    ]


def _columns(numbers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {
        key: [number.get(name) for number in numbers]
        for key, name in (("y", "value"), ("low", "low"), ("high", "high"))
    }


def training_curves(run: Path) -> list[dict[str, Any]]:
    """What the run's own records say over its steps: accuracy on trained against held-out problems, calibration,
    diversity within groups, and mentions of what only the self-teacher was shown."""
    check_sums(run, "rollouts.jsonl", "metrics.jsonl", "evaluations.jsonl", "samples")
    groups: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in read_json_lines(run / "rollouts.jsonl"):
        groups[row["step"]][row["problem_id"]].append(row["text"])
    texts = {step: [text for group in found.values() for text in group] for step, found in groups.items()}
    distinct = {step: [canaries.distinct_ngrams(group) for group in found.values()] for step, found in groups.items()}
    trained = {
        row["step"]: row["reward"] for row in read_json_lines(run / "metrics.jsonl") if row.get("reward") is not None
    }
    accuracy = {"trained problems": trained, **_held_out(run)}
    curves: dict[str, dict[str, Points]] = {
        "accuracy": accuracy,
        "overconfidence": _calibration(run),
        "distinct_bigrams": {"rollouts": {step: _mean(values) for step, values in distinct.items()}},
        "mentions_feedback": {
            "rollouts": {
                step: _mean([float(canaries.mentions_feedback(text)) for text in some]) for step, some in texts.items()
            }
        },
    }
    return [
        {
            "number": name,
            "lines": [
                {"label": label, "x": sorted(points), "y": [points[step] for step in sorted(points)]}
                for label, points in lines.items()
            ],
        }
        for name, lines in curves.items()
        if any(len(points) > 1 for points in lines.values())
    ]


def _held_out(run: Path) -> dict[str, Points]:
    """Avg@n of each set that is not trained on."""
    found: dict[str, Points] = defaultdict(dict)
    for row in read_json_lines(run / "evaluations.jsonl"):
        averages = [number for number in row["metrics"] if number["metric"].startswith("avg@")]
        if averages and averages[-1]["value"] is not None:
            found[f"{row['set']} problems"][row["step"]] = averages[-1]["value"]
    return dict(found)


def _calibration(run: Path) -> dict[str, Points]:
    """Confidence minus accuracy of the majority answer, per set, from the completions of each evaluation."""
    found: dict[str, Points] = defaultdict(dict)
    for file in sorted(run.glob("samples/step-*-*.jsonl")):
        _, step, name = file.stem.split("-", 2)
        found[f"{name} problems"][int(step)] = canaries.overconfidence(
            [(row["answers"], row["verdicts"]) for row in read_json_lines(file)]
        )
    return dict(found)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
