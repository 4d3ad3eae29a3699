"""Commands that train: demo, compare, train, warmstart."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from stepalign.cli.options import (
    DryRunOption,
    OutOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
    budget_spent,
    interrupted,
    resume_command,
)
from stepalign.config import Config, load_config
from stepalign.errors import BudgetSpentError, ConfigError
from stepalign.events import progress


def demo(
    out: OutOption = Path("runs/demo"),
    settings: SetOption = None,
    resume: ResumeOption = False,
) -> None:
    """Compare GRPO, RefSol and StepAlignFB on the embedded task and write a page about it."""
    # Once more means: go on where it stopped, or show the finished results again.
    _compare("arithmetic", out, settings, resume=resume or (out / "config.toml").exists(), dry_run=False)


def compare(
    recipe: RecipeArgument,
    out: OutOption,
    settings: SetOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run every arm of a recipe with every seed; results.json and report.html land in the folder."""
    _compare(recipe, out, settings, resume=resume, dry_run=dry_run)


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
    from stepalign.stopping import Interrupted, StopRequest
    from stepalign.verbs.progress import Display, console
    from stepalign.verbs.train import train_config

    command = resume_command("train", recipe, out, settings)
    notice = "stopping: the run saves itself after this step; Ctrl-C once more stops at once"
    with StopRequest(notice).listening() as stop, Display(config.condition) as display:
        try:
            done = train_config(config, out, resume=resume, listener=display, stop=stop)
        except Interrupted:
            raise interrupted(command) from None
        except BudgetSpentError as error:
            raise budget_spent(error, command) from None
    console.print(f"{done.step} steps, {done.num_rollouts} rollouts, {done.num_tokens} tokens")
    console.print(f"weights: {out / 'final'}")
    return None


def warmstart(
    out: OutOption,
    seed: Annotated[int, typer.Option("--seed", help="Another solver: other first weights, other weak facts.")] = 1,
    steps: Annotated[int, typer.Option("--steps", help="Only so many steps, to try it out.", min=0)] = 0,
) -> None:
    """Make the embedded solver and its problem sets again, from nothing; needs a checkout of the repository."""
    from stepalign.verbs.progress import Display, console

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
        told = make_embedded(
            out,
            seed=seed,
            max_steps=steps or None,
            on_step=lambda done, total, note: display(progress("warm start", done, total, note)),
        )
    for line in told:
        console.print(line)


def signal_of_base(recipe: RecipeArgument, out: OutOption) -> None:
    """The analysis of a comparison's untrained solver; ``compare`` calls this."""
    from stepalign.stopping import stop_with_parent
    from stepalign.verbs.progress import Display
    from stepalign.verbs.signal.base import write_signal

    stop_with_parent()
    write_signal(load_config(recipe), out, Display("signal"))


# ---------------------------------------------------------------------------------------------------------------------


def _compare(recipe: str, out: Path, settings: list[str] | None, *, resume: bool, dry_run: bool) -> None:
    config = load_config(recipe, settings or ())
    from stepalign.verbs.compare import RunsFailedError, arm_differences, compare_config, plan

    plan(config, out)  # every arm must be valid before the first one runs
    if dry_run:
        for name, keys in arm_differences(config).items():
            changes = ", ".join(f"{key} = {value!r}" for key, value in keys.items())
            print(f"arm {name}: {changes or 'as the shared configuration'}")
        return _dry_run(config)
    from stepalign.domains.table import load_set
    from stepalign.evaluation.comparison import detectable_difference
    from stepalign.report.table import results_table
    from stepalign.verbs.progress import Display, console

    num_test = len(load_set(config.data, "test").problems)
    if num_test > 1:
        console.print(detectable_difference(num_test, config.evaluation.num_samples, len(config.compare.seeds)))
    command = resume_command("compare", recipe, out, settings)
    with Display() as display:
        try:
            results = compare_config(config, recipe, out, resume=resume, listener=display)
        except KeyboardInterrupt:
            raise interrupted(command) from None
        except BudgetSpentError as error:
            raise budget_spent(error, command) from None
        except RunsFailedError as error:
            error.hint = f"{error.hint}; then {command}" if error.hint else f"do the failed runs again: {command}"
            raise
    console.print(results_table(results), soft_wrap=False)
    clock, whole = results["timings"], ("workers", "report", "total")
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in clock.items() if name not in whole)
    console.print(f"time: {clock['total']:.0f} s on the clock; summed over the runs: {spent}")
    console.print(f"memory: at most {results['peak_memory_bytes'] / 2**20:.0f} MiB a process")
    console.print(f"report: {out / 'report.html'}")
    return None


def _dry_run(config: Config) -> None:
    from stepalign.verbs.dry_run import describe

    print(describe(config))
