"""The command line: parse, build, call one function. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stepalign.config import Config, load_config
from stepalign.errors import ConfigError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a language model on feedback - and see, token by token, what that feedback teaches.",
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe (arithmetic).")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one key.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue what is in the folder.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the configuration and the prompts of one problem, and do nothing else.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def _root(
    debug: DebugOption = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from stepalign import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    settings: SetOption = None,
    resume: ResumeOption = False,
) -> None:
    """Compare GRPO, RefSol and StepAlignFB on the embedded task and write a page about it."""
    # Once more means: go on where it stopped, or show the finished results again.
    _compare("arithmetic", out, settings, resume=resume or (out / "config.toml").exists(), dry_run=False)


@app.command()
def compare(
    recipe: RecipeArgument,
    out: OutOption,
    settings: SetOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run every arm of a recipe with every seed; results.json and report.html land in the folder."""
    _compare(recipe, out, settings, resume=resume, dry_run=dry_run)


@app.command()
def train(
    recipe: RecipeArgument,
    out: OutOption,
    settings: SetOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train one condition; the last weights land in final/ of the folder."""
    config = load_config(recipe, settings or ())
    if dry_run:
        return _dry_run(config)
    from stepalign.progress import TrainDisplay, console
    from stepalign.training.loop import Interrupted, StopRequest
    from stepalign.training.loop import train as run

    command = _resume_command("train", recipe, out, settings)
    with StopRequest().listening() as stop, TrainDisplay(config.condition, config.training.max_steps) as display:
        try:
            progress = run(config, out, resume=resume, listener=display, stop=stop)
        except Interrupted:
            raise _interrupted(command) from None
    console.print(f"{progress.step} steps, {progress.num_rollouts} rollouts, {progress.num_tokens} tokens")
    console.print(f"weights: {out / 'final'}")
    return None


@app.command()
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


@app.command()
def signal(
    run: Annotated[Path, typer.Argument(help="A run folder with stored rollouts.")],
    out: OutOption,
    contexts: Annotated[str, typer.Option("--contexts", help="Context designs, separated by commas.")] = "",
    model: Annotated[str, typer.Option("--model", help="Score with this model instead of the run's first one.")] = "",
    num: Annotated[int, typer.Option("--num", help="Rollouts to score, from the first on.", min=1)] = 256,
    settings: SetOption = None,
) -> None:
    """A_t of stored rollouts under several contexts: signal.json and a page."""
    from stepalign.progress import console
    from stepalign.signal.stored import analyse_run

    page = analyse_run(
        run, out, contexts=tuple(c for c in contexts.split(",") if c), model=model, num=num, settings=settings or ()
    )
    console.print(f"page: {page}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A comparison folder.")]) -> None:
    """Write the page of a comparison again, finished or not."""
    from stepalign.compare import rewrite_results
    from stepalign.progress import console

    console.print(f"page: {rewrite_results(folder)}")


@app.command()
def warmstart(
    out: OutOption,
    seed: Annotated[int, typer.Option("--seed", help="Another solver: other first weights, other weak facts.")] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Only so many steps, to try it out.", min=0)] = 0,
) -> None:
    """Make the embedded solver and its problem sets again, from nothing."""
    from stepalign.progress import console, progress_bars
    from stepalign.training.warmstart import make_embedded

    with progress_bars(transient=True) as bars:
        row = bars.add_task("warm start", total=None, note="")
        told = make_embedded(
            out, seed=seed, max_steps=steps or None, on_step=lambda done, total, note: bars.update(
                row, completed=done, total=total, note=note
            ),
        )  # fmt: skip
    for line in told:
        console.print(line)


# ---------------------------------------------------------------------------------------------------------------------


def _compare(recipe: str, out: Path, settings: list[str] | None, *, resume: bool, dry_run: bool) -> None:
    config = load_config(recipe, settings or ())
    from stepalign.compare import arm_differences, compare, plan

    plan(config, out)  # every arm must be valid before the first one runs
    if dry_run:
        for name, keys in arm_differences(config).items():
            changes = ", ".join(f"{key} = {value!r}" for key, value in keys.items())
            print(f"arm {name}: {changes or 'as the shared configuration'}")
        return _dry_run(config)
    from stepalign.evaluation.comparison import detectable_difference
    from stepalign.progress import CompareDisplay, console
    from stepalign.report.table import results_table
    from stepalign.training.session import load_set

    num_test = len(load_set(config, "test").problems)
    if num_test > 1:
        console.print(detectable_difference(num_test, config.evaluation.num_samples, len(config.compare.seeds)))
    with CompareDisplay() as display:
        try:
            results = compare(config, recipe, out, resume=resume, watcher=display)
        except KeyboardInterrupt:
            raise _interrupted(_resume_command("compare", recipe, out, settings)) from None
    console.print(results_table(results))
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["timings"].items() if name != "total")
    console.print(f"time: {results['timings']['total']:.0f} s on the clock; in the runs: {spent}")
    console.print(f"memory: at most {results['peak_memory_bytes'] / 2**20:.0f} MiB a process")
    console.print(f"report: {out / 'report.html'}")
    return None


def _dry_run(config: Config) -> None:
    from stepalign.dry_run import describe

    print(describe(config))


def _config_for_model(model: str, recipe: str, settings: list[str] | None, keys: dict[str, Any]) -> Config:
    """The configuration that goes with a model: that of its run, of the embedded recipe, or the one named."""
    from stepalign.config import changed, parse_settings

    folder = Path(model)
    is_run = (folder / "config.toml").exists() and (folder / "run.lock").exists()
    default = str(folder / "config.toml") if is_run else "arithmetic" if model.startswith("embedded:") else None
    keys = {**keys, "model.path": str(folder / "final") if is_run else model, "model.lora": None, "data.max_test": None}
    return changed(load_config(recipe or default), {**keys, **parse_settings(settings or ())}, "--set")


def _resume_command(verb: str, recipe: str, out: Path, settings: list[str] | None) -> str:
    changes = "".join(f" --set {shlex.quote(setting)}" for setting in settings or ())
    return f"stepalign {verb} {recipe} --out {out}{changes} --resume"


class _Stopped(UserError):  # noqa: N818 - not a mistake: everything is saved
    exit_code = 130


def _interrupted(command: str) -> _Stopped:
    return _Stopped("stopped; everything so far is saved", hint=f"continue with: {command}")


def main() -> None:
    """Entry point. Prints a user's error without a traceback and exits with its code."""
    debug = "--debug" in sys.argv
    # One torch thread a process unless the user says otherwise: small matrices lose on more.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=False, args=[a for a in sys.argv[1:] if a != "--debug"])
    except UserError as error:
        _fail(error, debug)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the option parser
            _fail(ConfigError(error.format_message(), hint="stepalign --help"), debug)  # type: ignore[attr-defined]
        raise


def _fail(error: UserError, debug: bool) -> None:
    if debug:
        raise error
    prefix = "" if error.exit_code == 130 else "error: "
    print(f"{prefix}{error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
