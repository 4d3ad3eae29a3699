"""Commands that measure: evaluate, grade, select."""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated

import typer

from stepalign.cli.options import (
    OutFileOption,
    OutOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
    interrupted,
    resume_command,
)
from stepalign.config import load_config


def evaluate(
    model: Annotated[str, typer.Argument(help="embedded:arithmetic, a model folder, a Hub name, or a run folder.")],
    problems: Annotated[str, typer.Option("--problems", help="JSONL file, or embedded:arithmetic for its test set.")],
    out: OutFileOption,
    n: Annotated[int, typer.Option("--n", help="Completions per problem.", min=1)] = 12,
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts and sampling come from this recipe.")] = "",
    settings: SetOption = None,
) -> None:
    """Pass@k, Maj@k and Avg@k with intervals, completion length and truncation; completions lie beside the numbers."""
    from stepalign.verbs.configs import config_for_model
    from stepalign.verbs.evaluate import evaluate_model
    from stepalign.verbs.progress import Display, console, headline

    config, source = config_for_model(model, recipe, settings, {"evaluation.num_samples": n})
    student = config.prompts.student.strip().splitlines()[0]
    console.print(
        f"student prompt {student!r}, at most {config.evaluation_length} tokens, "
        f"temperature {config.evaluation.temperature:g} (from {source}; --recipe or --set change it)"
    )
    with Display() as display:
        try:
            result = evaluate_model(config, problems, out, listener=display)
        except KeyboardInterrupt:
            raise interrupted("the same command") from None
    console.print(headline(result["metrics"]))
    console.print(f"{result['num_problems']} problems x {result['num_samples']} completions; numbers: {out}")


def grade(
    file: Annotated[str, typer.Argument(help="JSONL, JSON or Parquet file with completions and expected answers.")],
    completion: Annotated[str, typer.Option("--completion", help="Column with the completion.")],
    answer: Annotated[str, typer.Option("--answer", help="Column with the expected answer, or a worked solution.")],
    out: OutFileOption,
    grader: Annotated[str, typer.Option("--grader", help="A grader of your own, module:function.")] = "",
    seconds: Annotated[float, typer.Option("--seconds", help="CPU time of one comparison.", min=0.01)] = 1.0,
    workers: Annotated[int, typer.Option("--workers", help="Child processes; 0: one per core.", min=0)] = 0,
) -> None:
    """Verdict, extracted answer and reason for every row of a file; goes on where it was stopped."""
    from stepalign.domains.domain import open_grader
    from stepalign.verbs.grade import grade_file
    from stepalign.verbs.progress import Display, console

    opening = open_grader(grader, seconds=seconds, num_workers=workers or os.cpu_count() or 1)
    with opening as opened, Display(transient=True) as display:
        counts = grade_file(
            file,
            out,
            completion=completion,
            answer=answer,
            grader=opened,
            listener=display,
        )
    verdicts = counts["verdicts"]
    console.print(", ".join(f"{verdicts[name]} {name}" for name in ("correct", "incorrect", "undecided")))
    for reason, count in counts["reasons"].most_common():
        console.print(f"{count:>8} {reason}")
    console.print(f"verdicts: {out}")


def select(
    recipe: RecipeArgument,
    out: OutOption,
    problems: Annotated[str, typer.Option("--problems", help="Instead of data.train of the recipe.")] = "",
    settings: SetOption = None,
    resume: ResumeOption = False,
) -> None:
    """Keep the problems that the solver solves seldom but not never, well formatted, and that the critic can solve."""
    from stepalign.report.funnel import funnel_table, write_funnel
    from stepalign.verbs.progress import Display, console
    from stepalign.verbs.select import select as run

    named = [f"data.train={json.dumps(problems)}"] if problems else []
    config = load_config(recipe, [*(settings or ()), *named])
    command = resume_command("select", recipe, out, [*(settings or ()), *named])
    with Display() as display:
        try:
            manifest = run(config, out, resume=resume, listener=display)
        except KeyboardInterrupt:
            raise interrupted(command) from None
    write_funnel(manifest, out / "funnel.html")
    console.print(funnel_table(manifest["funnel"]))
    for name, file in manifest["files"].items():
        console.print(f"{name}: {file['problems']} problems, {out / file['file']}")
    console.print(
        "train on them: " + " ".join(f"--set data.{name}={shlex.quote(str(out))}" for name in manifest["files"])
    )
