"""Commands that measure: evaluate, grade."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stepalign.cli.options import SetOption
from stepalign.config import Config, load_config
from stepalign.errors import ConfigError


def evaluate(
    model: Annotated[str, typer.Argument(help="embedded:arithmetic, a model folder, a Hub name, or a run folder.")],
    problems: Annotated[str, typer.Option("--problems", help="JSONL file, or embedded:arithmetic for its test set.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file for the numbers; completions lie beside it.")],
    n: Annotated[int, typer.Option("--n", help="Completions per problem.", min=1)] = 12,
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts and sampling come from this recipe.")] = "",
    settings: SetOption = None,
) -> None:
    """Pass@k, Maj@k and Avg@k with intervals, completion length and truncation."""
    from stepalign.progress import console, headline
    from stepalign.training.evaluation import evaluate_model

    config = _config_for_model(model, recipe, settings, {"evaluation.num_samples": n})
    result = evaluate_model(config, problems, out)
    console.print(headline(result["metrics"]))
    console.print(f"{result['num_problems']} problems x {n} completions; numbers: {out}")


def grade(
    file: Annotated[str, typer.Argument(help="JSONL, JSON or Parquet file with completions and expected answers.")],
    completion: Annotated[str, typer.Option("--completion", help="Column with the completion.")],
    answer: Annotated[str, typer.Option("--answer", help="Column with the expected answer, or a worked solution.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file for the verdicts, one line per row.")],
    grader: Annotated[str, typer.Option("--grader", help="A grader of your own, module:function.")] = "",
    seconds: Annotated[float, typer.Option("--seconds", help="CPU time of one comparison.", min=0.01)] = 1.0,
    workers: Annotated[int, typer.Option("--workers", help="Child processes; 0: one per core.", min=0)] = 0,
) -> None:
    """Verdict, extracted answer and reason for every row of a file; goes on where it was stopped."""
    from stepalign.progress import console, progress_bars
    from stepalign.tasks.grade_file import grade_file
    from stepalign.tasks.grading import Grader, GraderConfig

    config = GraderConfig(function=grader or None, seconds=seconds, num_workers=workers or os.cpu_count() or 1)
    with Grader(config) as opened, progress_bars(transient=True) as bars:
        bar = bars.add_task("grading", total=None, note="")
        counts = grade_file(
            file,
            out,
            completion=completion,
            answer=answer,
            grader=opened,
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    verdicts = counts["verdicts"]
    console.print(", ".join(f"{verdicts[name]} {name}" for name in ("correct", "incorrect", "undecided")))
    for reason, count in counts["reasons"].most_common():
        console.print(f"{count:>8} {reason}", markup=False)
    console.print(f"verdicts: {out}", markup=False, soft_wrap=True)


def _config_for_model(model: str, recipe: str, settings: list[str] | None, keys: dict[str, Any]) -> Config:
    """The configuration that goes with a model: that of its run, of the embedded recipe, or the one named."""
    from stepalign.config import changed, parse_settings

    folder = Path(model)
    if (folder / "arms").is_dir():
        runs = sorted(str(final.parent.relative_to(folder)) for final in folder.glob("arms/*/seed-*/final"))
        raise ConfigError(
            "a comparison holds many models; one of its runs is needed",
            where=model,
            hint=f"give {folder / 'arms' / 'ARM' / 'seed-N'}; finished: {', '.join(runs) or 'none yet'}",
        )
    is_run = (folder / "config.toml").exists() and (folder / "run.lock").exists()
    default = str(folder / "config.toml") if is_run else "arithmetic" if model.startswith("embedded:") else None
    keys = {**keys, "model.path": str(folder / "final") if is_run else model, "model.lora": None, "data.max_test": None}
    return changed(load_config(recipe or default), {**keys, **parse_settings(settings or ())}, "--set")
