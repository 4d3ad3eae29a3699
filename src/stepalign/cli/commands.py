"""Every command in the order of ``--help``: its words, and the one function that does the work."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.options import (
    DryRun,
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
from stepalign.errors import ConfigError
from stepalign.events import line, progress

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a language model on feedback - and see, token by token, what that feedback teaches.",
)

# ---------------------------------------------------------------------------------------------------------------------
# Commands that train


@app.command()
def demo(out: OutFolder = Path("runs/demo"), settings: Set = None, resume: Resume = False) -> None:
    """Compare GRPO, RefSol and StepAlignFB on the embedded task and write a page about it."""
    # Once more means: go on where it stopped, or show the finished results again.
    compare("arithmetic", out, settings, resume or (out / "config.toml").exists())


@app.command()
def compare(
    recipe: Recipe, out: OutFolder, settings: Set = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Run every arm of a recipe with every seed; results.json and report.html land in the folder."""
    from stepalign.config import load_config
    from stepalign.verbs.compare import compare_config, describe_arms
    from stepalign.verbs.report import summary_lines

    config = load_config(recipe, settings or ())
    if dry_run:
        print(describe_arms(config, out))
        return _dry_run(config)
    note_new_run(out, resume)
    with working() as display:
        results = compare_config(config, recipe, out, resume=resume, listener=display)
    from stepalign.report.table import results_table
    from stepalign.verbs.progress import console

    console.print(results_table(results), soft_wrap=False)
    say(*summary_lines(results))
    say(f"report: {out / 'report.html'}")
    return None


@app.command()
def train(
    recipe: Recipe, out: OutFolder, settings: Set = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train one condition; the last weights land in final/ of the folder."""
    from stepalign.config import load_config
    from stepalign.stopping import StopRequest

    config = load_config(recipe, settings or ())
    if dry_run:
        return _dry_run(config)
    from stepalign.verbs.train import train_config

    notice = "stopping: the run saves itself after this step; Ctrl-C once more stops at once"
    note_new_run(out, resume)
    with working(config.condition) as display, StopRequest(notice).listening() as stop:
        done = train_config(config, out, resume=resume, listener=display, stop=stop)
    say(f"{done.step} steps, {done.num_rollouts} rollouts, {done.num_tokens} tokens")
    say(f"weights: {out / 'final'}")
    return None


@app.command()
def prepare(recipe: Recipe, out: OutFolder, settings: Set = None, resume: Resume = False) -> None:
    """Warm a model up on a domain's format until its pass rate is in a band; the weights land in solver/."""
    from stepalign.config import load_config
    from stepalign.stopping import StopRequest

    config = load_config(recipe, settings or ())
    from stepalign.verbs.prepare import prepare_solver

    notice = "stopping: the warm-up goes on from its last measurement; Ctrl-C once more stops at once"
    with working("prepare") as display, StopRequest(notice).listening() as stop:
        done = prepare_solver(config, out, resume=resume, listener=display, stop=stop)
    rate = f"{done['pass_rate']:.1%} [{done['low']:.1%}, {done['high']:.1%}]"
    say(f"{done['examples']} examples; {rate} of {done['problems']} validation problems x {done['num_samples']}")
    say(f"weights: {out / 'solver'}")


def _dry_run(config: object) -> None:
    from stepalign.verbs.dry_run import describe

    print(describe(config))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Commands that measure


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="embedded:arithmetic, a model folder, a Hub name, or a run folder.")],
    problems: Annotated[str, typer.Option("--problems", help="JSONL file, or embedded:arithmetic for its test set.")],
    out: OutFile,
    n: Annotated[int, typer.Option("--n", help="Completions per problem.", min=1)] = 12,
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts and sampling come from this recipe.")] = "",
    samples: SamplesFile = None,
    settings: Set = None,
) -> None:
    """Pass@k, Maj@k and Avg@k with intervals, completion length and truncation; completions lie beside the numbers."""
    from stepalign.verbs.configs import config_for_model
    from stepalign.verbs.evaluate import evaluate_model
    from stepalign.verbs.progress import headline

    config, source = config_for_model(model, recipe, settings, {"evaluation.num_samples": n})
    with working(resume="") as display:
        result = evaluate_model(config, problems, out, display, samples, origin=source)
    say(headline(result["metrics"]))
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
    with working(transient=True, resume="") as display, opening as opened:
        columns = {"completion": completion, "answer": answer, "prompt": prompt}
        counts = grade_file(file, out, **columns, thinking=thinking, grader=opened, listener=display)
    verdicts = counts["verdicts"]
    say(", ".join(f"{verdicts[name]} {name}" for name in ("correct", "incorrect", "undecided")))
    for reason, count in counts["reasons"].most_common():
        say(f"{count:>8} {reason}")
    say(f"verdicts: {out}")


@app.command()
def select(
    recipe: Recipe,
    out: OutFolder,
    problems: Annotated[str, typer.Option("--problems", help="Instead of data.train of the recipe.")] = "",
    settings: Set = None,
    resume: Resume = False,
) -> None:
    """Keep the problems that the solver solves seldom but not never, well formatted, and that the critic can solve."""
    from stepalign.config import load_config
    from stepalign.report.funnel import funnel_table, write_funnel
    from stepalign.verbs.select import select as run

    named = [f"data.train={json.dumps(problems)}"] if problems else []
    config = load_config(recipe, [*(settings or ()), *named])
    note_new_run(out, resume)
    with working() as display:
        manifest = run(config, out, resume=resume, listener=display)
    write_funnel(manifest, out / "funnel.html")
    say(funnel_table(manifest["funnel"]))
    for name, file in manifest["files"].items():
        say(f"{name}: {file['problems']} problems, {out / file['file']}")
    say("train on them: " + " ".join(f"--set data.{name}={shlex.quote(str(out))}" for name in manifest["files"]))


# ---------------------------------------------------------------------------------------------------------------------
# Commands that show


@app.command()
def signal(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_RUN",
            help="JSONL with question, completion and contexts (name -> text), a run folder, or a shipped example "
            "(fizzbuzz, integral, correct, one-wrong-step, wrong-approach).",
        ),
    ],
    out: OutFolder,
    model: Annotated[
        str, typer.Option("--model", help="Scores the rollouts: a folder or a Hub name. A run brings its own.")
    ] = "",
    contexts: Annotated[
        str, typer.Option("--contexts", help="Names separated by commas: designs for a run, columns of a file.")
    ] = "",
    num: Annotated[
        int | None, typer.Option("--num", help="Rollouts from the first on; 256 of a run, all of a file.", min=1)
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Prompts and temperature for a file come from this recipe.")
    ] = "",
    settings: Set = None,
) -> None:
    """A_t of attempts under several contexts: signal.jsonl, arrays and a page; goes on where it stopped."""
    from stepalign.verbs.signal.rows import find_file

    path = find_file(source)
    names = tuple(name.strip() for name in contexts.split(",") if name.strip())
    with working(transient=True, resume="") as display:
        if path.is_dir():
            if recipe:
                raise ConfigError("a run brings its own recipe", where="--recipe", hint="change keys with --set")
            from stepalign.verbs.signal.from_run import analyse_run

            page = analyse_run(
                path, out, contexts=names, model=model, num=num, settings=settings or (), listener=display
            )
        else:
            from stepalign.verbs.configs import config_for_file, prompts_said
            from stepalign.verbs.signal.from_jsonl import analyse_file

            if not model:
                hint = "--model FOLDER or a Hub name"
                raise ConfigError("a file needs a model that scores it", where="--model", hint=hint)
            config, origin = config_for_file(model, recipe, settings)
            display(line(prompts_said(config, origin)))
            page = analyse_file(path, out, config, contexts=names, num=num, prompts_from=origin, listener=display)
    say(f"page: {page}")


SignalFolder = Annotated[
    Path, typer.Argument(metavar="SIGNAL_DIR", help="What `stepalign signal`, `compare` or `demo` has written.")
]
Rollout = Annotated[str, typer.Option("--rollout", help="A rollout_id, or a position on the page from 0 on.")]
Contexts = Annotated[
    list[str] | None, typer.Option("--context", help="Show only this context; may be given several times.")
]


@app.command()
def show(folder: SignalFolder, rollout: Rollout = "0", contexts: Contexts = None) -> None:
    """One rollout in the terminal, token by token: the twin of the page."""
    from stepalign.report.terminal import print_rollout
    from stepalign.token_signal.files import load_signal
    from stepalign.verbs.progress import console

    print_rollout(load_signal(folder, rollout), rollout, contexts=contexts or (), console=console)


@app.command()
def figure(
    folder: SignalFolder,
    out: Annotated[Path, typer.Option("--out", help="The file: its suffix .pdf, .svg or .png is the format.")],
    rollout: Rollout = "0",
    contexts: Contexts = None,
    steps: Annotated[
        list[str] | None, typer.Option("--step", help="Draw only this step; may be given several times.")
    ] = None,
    width: Annotated[str, typer.Option("--width", help="Exact width: 5.5in, 14cm, 397.5pt (TeX points).")] = "5.5in",
    font_size: Annotated[float, typer.Option("--font-size", help="Points.", min=3, max=40)] = 7.0,
    dpi: Annotated[int, typer.Option("--dpi", help="Dots per inch of a PNG.", min=30, max=1200)] = 300,
) -> None:
    """One rollout as a picture for a paper: contexts stacked, one scale, fonts embedded."""
    from stepalign.report.figure import parse_width, write_figure
    from stepalign.token_signal.files import load_signal
    from stepalign.verbs.progress import console

    inches = parse_width(width)
    missing = write_figure(
        load_signal(folder, rollout), out, rollout=rollout, contexts=contexts or (), steps=steps or (),
        width=inches, font_size=font_size, dpi=dpi,
    )  # fmt: skip
    if missing:
        some = ", ".join(f"U+{ord(character):04X}" for character in missing[:8])
        console.print(f"warning: no installed font has {some}; the figure shows boxes there", style="yellow")
    say(f"figure: {out}")


@app.command()
def lab(
    model: Annotated[str, typer.Argument(help="A model folder, a Hub name, or embedded:arithmetic.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts, temperature and critic; else the defaults.")] = "",
    port: Annotated[
        int, typer.Option("--port", help="Port on 127.0.0.1; any free one by default.", min=0, max=65535)
    ] = 0,
    settings: Set = None,
) -> None:
    """A local page: edit feedback and see at once which tokens it reinforces or suppresses."""
    from stepalign.verbs.lab import open_lab
    from stepalign.verbs.progress import Display

    open_lab(model, recipe=recipe, port=port, settings=settings or (), listener=Display("lab"))


@app.command()
def critique(
    rollouts: Annotated[Path, typer.Argument(help="A run folder, its rollouts.jsonl, or JSON lines of attempts.")],
    out: OutFolder,
    critic: Annotated[
        str,
        typer.Option("--critic", help="A recipe, URLs (http://host/v1, ...), or a program: programmatic, calculation."),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Name of the critic on its server; not needed where that has only one.")
    ] = "",
    columns: Annotated[
        str, typer.Option("--columns", help="Columns of a plain file: question=COLUMN,completion=COLUMN,...")
    ] = "",
    cache_only: Annotated[
        bool, typer.Option("--critic-cache-only", help="Replay from the cache; never call the critic.")
    ] = False,
    settings: Set = None,
    resume: Resume = False,
) -> None:
    """Ask a critic about stored attempts and say what is wrong with its critiques: a linter for feedback."""
    from stepalign.report.critiques import critique_lines
    from stepalign.verbs.attempts import read_attempts
    from stepalign.verbs.configs import config_with_critic, parse_pairs
    from stepalign.verbs.critique import critique_rollouts

    attempts = read_attempts(rollouts, parse_pairs(columns))
    config = config_with_critic(attempts.config, critic, model, settings, cache_only=cache_only)
    note_new_run(out, resume)
    with working(transient=True) as display:
        summary = critique_rollouts(config, attempts, out, resume=resume, listener=display)
    say(*critique_lines(summary))
    say(f"page: {out / 'index.html'}")


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A comparison folder, folders of train, or a file of completions from evaluate."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the page of several runs goes; else into the folder itself.")
    ] = None,
) -> None:
    """The page and the tables of a comparison, of a run, or of several runs side by side, finished or not; or of
    completions."""
    from stepalign.verbs.progress import Display
    from stepalign.verbs.report import write_reports

    with Display(transient=True) as display:
        page = write_reports(folders, out, display)
    say(f"page: {page}")


# ---------------------------------------------------------------------------------------------------------------------
# Commands of the embedded task and of a comparison


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A model as in model.path: a folder, a Hub name, embedded:arithmetic.")],
    only_print: Annotated[bool, typer.Option("--print", help="Print the server's command, and do not run it.")] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    python: Annotated[str, typer.Option("--python", help="Interpreter of the environment that has vLLM.")] = "python3",
    length: Annotated[int, typer.Option("--max-model-len", help="Tokens of prompt and completion.", min=1)] = 4096,
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Of the largest adapter.", min=1)] = 64,
) -> None:
    """Run a vLLM server that sampling.engine = "vllm" draws rollouts from."""
    from stepalign.verbs.serve import run, server_command

    command = server_command(model, port=port, python=python, max_model_len=length, lora_rank=lora_rank)
    if only_print:
        return print(command)
    raise typer.Exit(run(command))


@app.command()
def warmstart(
    out: OutFolder,
    seed: Annotated[int, typer.Option("--seed", help="Another solver: other first weights, other weak facts.")] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Only so many steps, to try it out.", min=0)] = 0,
) -> None:
    """Make the embedded solver and its problem sets again, from nothing; needs a checkout of the repository."""
    from stepalign.verbs.progress import Display

    script = Path(__file__).resolve().parents[3] / "dev" / "make_embedded.py"
    if not script.is_file():
        raise ConfigError(
            "the script that makes the embedded solver is in the repository, not in the installed package",
            where=str(script),
            hint="clone the repository, pip install --editable . in it, and give the command again",
        )
    sys.path.insert(0, str(script.parent))
    make_embedded = importlib.import_module("make_embedded").make_embedded
    with Display(transient=True) as display:
        found = make_embedded(
            out,
            seed=seed,
            max_steps=steps or None,
            on_step=lambda done, total, note: display(progress("warm start", done, total, note)),
        )
    say(*found)


@app.command("signal-of-base", hidden=True)
def signal_of_base(recipe: Recipe, out: OutFolder) -> None:
    """The analysis of a comparison's untrained solver; ``compare`` calls this."""
    from stepalign.config import load_config
    from stepalign.stopping import stop_with_parent
    from stepalign.verbs.progress import Display
    from stepalign.verbs.signal.base import write_signal

    stop_with_parent()
    write_signal(load_config(recipe), out, Display("signal"))
