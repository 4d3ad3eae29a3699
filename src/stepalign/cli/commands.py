"""The commands that train and measure: their words, and the one function that does the work."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepalign.cli.options import (
    DryRun,
    Measure,
    OutFile,
    OutFolder,
    Recipe,
    Resume,
    SamplesFile,
    Set,
    note_new_run,
    say,
    working,
)
from stepalign.outside import shown
from stepalign.stopping import PROCESS

if TYPE_CHECKING:
    from stepalign.config import Config

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a language model on feedback - and see, token by token, what that feedback teaches.",
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    if version:
        from stepalign import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


# ---------------------------------------------------------------------------------------------------------------------
# Commands that train


@app.command()
def demo(out: OutFolder = Path("runs/demo"), settings: Set = None, resume: Resume = False) -> None:
    """Compare GRPO, RefSol and StepAlignFB on the embedded task and write a page about it."""
    # Once more means: go on where it stopped, or show the finished results again.
    compare("arithmetic", out, settings, resume or (out / "config.toml").exists())


@app.command()
def compare(
    recipe: Recipe,
    out: OutFolder,
    settings: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = False,
) -> None:
    """Run every arm of a recipe with every seed; results.json and report.html land in the folder."""
    from stepalign.config import load_config
    from stepalign.verbs.compare import compare_config, describe_arms
    from stepalign.verbs.report import summary_lines

    config = load_config(recipe, settings or ())
    if dry_run or measure:
        print(shown(describe_arms(config, out)))
        return _dry_run(config, measures=measure, with_arms=True)
    note_new_run(out, resume)
    with working(kept="every run keeps what it has saved") as display:
        results = compare_config(config, recipe, out, resume=resume, listener=display)
    from stepalign.report.table import results_table
    from stepalign.verbs.progress import console

    console.print(results_table(results), soft_wrap=False)
    say(*summary_lines(results))
    say(f"report: {out / 'report.html'}")
    return None


@app.command()
def train(
    recipe: Recipe,
    out: OutFolder,
    settings: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = False,
) -> None:
    """Train one condition; the last weights land in final/ of the folder."""
    from stepalign.config import load_config

    config = load_config(recipe, settings or ())
    if dry_run or measure:
        return _dry_run(config, measures=measure)
    from stepalign.verbs.train import train_config

    note_new_run(out, resume)
    with working(config.condition, kept="no step is saved yet") as display:
        done = train_config(config, out, resume=resume, listener=display, stop=PROCESS)
    say(f"{done.step} steps, {done.num_rollouts} rollouts, {done.num_tokens} tokens")
    say(f"weights: {out / 'final'}")
    return None


@app.command()
def launch(
    recipe: Recipe,
    out: OutFolder,
    servers: Annotated[int, typer.Option("--servers", help="vLLM servers that draw the rollouts.", min=0)] = 0,
    ranks: Annotated[int, typer.Option("--ranks", help="Processes that learn together.", min=1)] = 1,
    compares: Annotated[bool, typer.Option("--compare", help="Run every arm of the recipe, as compare does.")] = False,
    python: Annotated[str, typer.Option("--python", help="Interpreter of the environment that has vLLM.")] = "python3",
    port: Annotated[int, typer.Option("--port", help="Of the first server.", min=1, max=65000)] = 8000,
    restarts: Annotated[int, typer.Option("--restarts", help="How often a process is started again.", min=0)] = 3,
    only_print: Annotated[bool, typer.Option("--print", help="Print the commands, and run none.")] = False,
    settings: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Start rollout servers and a training run on this machine, watch them, and stop them together."""
    from stepalign.config import load_config
    from stepalign.verbs.launch import Fleet, jobs_of
    from stepalign.verbs.launch import launch as start

    fleet = Fleet(servers=servers, ranks=ranks, port=port, python=python, restarts=restarts, compares=compares)
    words = [*(settings or ()), *fleet.settings]
    config = load_config(recipe, words)
    if dry_run:
        return _dry_run(config, ranks=ranks, with_arms=compares)
    jobs, run = jobs_of(fleet, config, recipe, out, words)
    if only_print:
        return print(*(shown(job) for job in (*jobs, run)), sep="\n")
    notice = "stopping: the run saves itself, the servers end with it; once more stops at once"
    note_new_run(out, resume)
    with working("launch", kept="the run keeps what it has saved") as display, PROCESS.held(notice) as stop:
        start(fleet, jobs, run, config, resume=resume, stop=stop, listener=display)
    say(f"done: {out}")
    return None


@app.command()
def prepare(recipe: Recipe, out: OutFolder, settings: Set = None, resume: Resume = False) -> None:
    """Warm a model up on a domain's format until its pass rate is in a band; the weights land in solver/."""
    from stepalign.config import load_config

    config = load_config(recipe, settings or ())
    from stepalign.verbs.prepare import prepare_solver

    with working("prepare", kept="the warm-up is kept up to its last measurement") as display:
        done = prepare_solver(config, out, resume=resume, listener=display)
    rate = f"{done['pass_rate']:.1%} [{done['low']:.1%}, {done['high']:.1%}]"
    say(f"{done['examples']} examples; {rate} of {done['problems']} validation problems x {done['num_samples']}")
    say(f"weights: {out / 'solver'}")


def _dry_run(config: Config, *, measures: bool = False, ranks: int | None = None, with_arms: bool = False) -> None:
    from stepalign.config import arm_config
    from stepalign.verbs.dry_run import describe

    arms = {arm.name: arm_config(config, arm, config.compare.seeds[0]) for arm in config.compare.arms}
    print(shown(describe(config, measures=measures, ranks=ranks, arms=arms if with_arms else {})))


# ---------------------------------------------------------------------------------------------------------------------
# Commands that measure


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="embedded:arithmetic, a model folder, a Hub name, a GGUF file, or a run folder.")
    ],
    problems: Annotated[str, typer.Option("--problems", help="JSONL file, or embedded:arithmetic for its test set.")],
    out: OutFile,
    n: Annotated[int, typer.Option("--n", help="Completions per problem.", min=1)] = 12,
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts and sampling come from this recipe.")] = "",
    samples: SamplesFile = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Completions of another evaluation: the win rate over them.")
    ] = None,
    settings: Set = None,
) -> None:
    """Pass@k, Maj@k and Avg@k with intervals, completion length and truncation; completions lie beside the numbers."""
    from stepalign.report.completions import score_facts
    from stepalign.verbs.configs import config_for_model
    from stepalign.verbs.evaluate import evaluate_model
    from stepalign.verbs.progress import headline

    config, source = config_for_model(model, recipe, settings, {"evaluation.num_samples": n})
    with working(resume="", kept="finished problems are kept") as display:
        result = evaluate_model(config, problems, out, display, samples, origin=source, against=against)
    say(headline(result["metrics"]))
    for words, value in score_facts(result["metrics"]):
        say(f"{words} {value}")
    say(f"{result['num_problems']} problems x {result['num_samples']} completions: {result['samples']}")
    say(f"numbers: {out}")


@app.command()
def grade(
    file: Annotated[str, typer.Argument(help="JSONL, JSON or Parquet file with completions and expected answers.")],
    completion: Annotated[str, typer.Option("--completion", help="Column with the completion.")],
    answer: Annotated[str, typer.Option("--answer", help="Column with the expected answer, or a worked solution.")],
    out: OutFile,
    grader: Annotated[str, typer.Option("--grader", help="A grader of your own, module:function.")] = "",
    seconds: Annotated[float, typer.Option("--seconds", help="CPU time of one comparison.", min=0.01)] = 1.0,
    workers: Annotated[int, typer.Option("--workers", help="Child processes; 0: one per core.", min=0)] = 0,
    prompt: Annotated[str, typer.Option("--prompt", help="Column with the prompt; its end may open a thought.")] = "",
    thinking: Annotated[bool, typer.Option("--thinking", help="Every prompt opened a thought.")] = False,
) -> None:
    """Verdict, extracted answer and reason for every row of a file; goes on where it was stopped."""
    from stepalign.domains.domain import open_grader
    from stepalign.verbs.grade import grade_file

    opening = open_grader(grader, seconds=seconds, num_workers=workers or os.cpu_count() or 1)
    with working(transient=True, resume="", kept="graded rows are kept") as display, opening as opened:
        columns = {"completion": completion, "answer": answer, "prompt": prompt}
        counts = grade_file(file, out, **columns, thinking=thinking, grader=opened, listener=display)
    verdicts = counts["verdicts"]
    say(", ".join(f"{verdicts[name]} {name}" for name in ("correct", "incorrect", "undecided")))
    for reason, count in counts["reasons"].most_common():
        say(f"{count:>8} {reason}")
    say(f"verdicts: {out}")


@app.command()
def preflight(
    recipe: Recipe,
    out: OutFolder,
    designs: Annotated[
        str, typer.Option("--designs", help="Names separated by commas; signal.contexts of the recipe by default.")
    ] = "",
    num: Annotated[int, typer.Option("--num", help="Rollouts to look at.", min=2)] = 32,
    settings: Set = None,
) -> None:
    """Know before training whether the feedback will teach, and what it would cost; exit code 6 where it will not."""
    from stepalign.config import load_config
    from stepalign.report.preflight import preflight_lines
    from stepalign.verbs.preflight import PAGE, preflight_config, refuse_no

    config = load_config(recipe, settings or ())
    names = [name.strip() for name in designs.split(",") if name.strip()]
    with working(
        "preflight", transient=True, resume="", kept="nothing is kept of a look that is not finished"
    ) as display:
        found = preflight_config(config, out, names=names, num=num, listener=display)
    say(*preflight_lines(found))
    say(f"page: {out / PAGE}")
    refuse_no(found, out)


@app.command()
def select(
    recipe: Recipe,
    out: OutFolder,
    problems: Annotated[str, typer.Option("--problems", help="Instead of data.train of the recipe.")] = "",
    settings: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Keep the problems that the solver solves seldom but not never, well formatted, and that the critic can solve."""
    from stepalign.config import load_config
    from stepalign.report.funnel import funnel_table, write_funnel
    from stepalign.verbs.select import select as run

    named = [f"data.train={json.dumps(problems)}"] if problems else []
    config = load_config(recipe, [*(settings or ()), *named])
    if dry_run:
        from stepalign.verbs.dry_run import describe_selection

        return print(shown(describe_selection(config)))
    note_new_run(out, resume)
    with working(kept="everything measured is kept") as display:
        manifest = run(config, out, resume=resume, listener=display)
    write_funnel(manifest, out / "funnel.html")
    say(funnel_table(manifest["funnel"]))
    for name, file in manifest["files"].items():
        say(f"{name}: {file['problems']} problems, {out / file['file']}")
    say("train on them: " + " ".join(f"--set data.{name}={shlex.quote(str(out))}" for name in manifest["files"]))
    return None
