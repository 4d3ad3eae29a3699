"""The comparison: arms x seeds from one base, a few at a time, then the analysis and the page.

Every arm is an ordinary run in its own folder, done by ``stepalign train`` in a process of its own; arms differ from
the shared configuration in the keys the recipe names and in nothing else. A finished run has a summary and is not done
again, so an interrupted comparison continues where it stopped.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.build import check_critic, model_choice
from stepalign.config import (
    CRITIC_URLS,
    PRIVATE_URLS,
    ArmSection,
    Config,
    Settings,
    arm_config,
    changed,
    difference,
    load_config,
    parse_settings,
    to_toml,
)
from stepalign.critics import CACHE, RUN_FILES
from stepalign.domains.table import load_set
from stepalign.errors import BudgetSpentError, ConfigError, UserError
from stepalign.evaluation.comparison import detectable_difference
from stepalign.events import Event, Listener, line
from stepalign.feedback.designs import find_condition, find_design
from stepalign.stopping import PROCESS
from stepalign.storage.files import read_json, write_atomically, write_json
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.storage.sums import note_sums
from stepalign.verbs.checks import check_recipe, run_checks
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.processes import Job, run_all
from stepalign.verbs.progress import for_python
from stepalign.verbs.report import (
    BASE,
    SIGNAL,
    arm_differences,
    collect_results,
    count_problems,
    publish,
    rewrite_results,
)

SHARED = (
    *("model.path", "prompts.student", "prompts.system"),
    *("data.validation", "data.test", "data.max_validation", "data.max_test", "data.grader"),
    *("data.judge", "data.second_judge", "sampling.stop"),  # such texts end evaluated completions too
    *("environment", "evaluation.", "signal.", "selection.", "compare."),
)
"""Beginnings of keys that no arm may set: all arms start from one untrained solver and answer the same questions."""
OWN = ("evaluation.eval_steps",)
"""Keys that an arm may set all the same."""


@dataclass(frozen=True, slots=True)
class Task:
    """One process of the comparison."""

    name: str
    """"ARM/seed-N", "base", or "signal"."""
    config: Config
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / ("signal.json" if self.name == SIGNAL else "summary.json")).exists()

    @property
    def cost(self) -> float:
        """Completions to sample, roughly."""
        config = self.config
        if self.name == SIGNAL:
            return 8.0 * config.signal.num_rollouts
        per_step = config.sampling.num_generations * config.training.problems_per_step
        return per_step * config.training.max_steps + 1000.0


class RunsFailedError(UserError):
    """Some runs of a comparison failed. Its exit code is theirs where they agree."""

    keeps_work = True

    def __init__(self, failures: Mapping[str, UserError], out: Path) -> None:
        first = next(iter(failures.values()))
        names_of: dict[str, list[str]] = {}
        for name, error in failures.items():
            names_of.setdefault(error.what, []).append(name)
        each = "; ".join(f"{', '.join(names)}: {what}" for what, names in names_of.items())
        runs = "one run" if len(failures) == 1 else f"{len(failures)} runs"
        mend = f"{first.hint}; then go on" if first.hint else "go on"
        hint = f"{mend} with --resume (resume=True in Python): finished runs are not done again"
        super().__init__(f"{runs} failed; {each}", where=first.where or str(out), hint=hint)
        self.failures = dict(failures)
        codes = {error.exit_code for error in failures.values()}
        self.exit_code = codes.pop() if len(codes) == 1 else UserError.exit_code
        for error in failures.values():
            for note in getattr(error, "__notes__", ()):
                self.add_note(note)


def plan(config: Config, out: Path) -> list[Task]:
    """The base evaluation, every arm with every seed, and the signal analysis.

    Raises:
        ConfigError: no arms, or an arm with a wrong key.
    """
    if not config.compare.arms:
        raise ConfigError("the recipe has no arms to compare", where="compare.arms", hint="add [[compare.arms]] tables")
    if any(arm.name == BASE for arm in config.compare.arms):
        raise ConfigError(
            f"an arm cannot be called {BASE}: that is the untrained solver", where="compare.arms", hint="rename the arm"
        )
    if not config.compare.seeds or len(set(config.compare.seeds)) != len(config.compare.seeds):
        raise ConfigError(
            "seeds must be given, and differ",
            where=f"compare.seeds = {list(config.compare.seeds)}",
            hint="--set 'compare.seeds=[0, 1, 2]'",
        )
    if config.compare.launcher and shutil.which(config.compare.launcher[0]) is None:
        raise ConfigError(
            f"there is no command {config.compare.launcher[0]} to start the runs with",
            where="compare.launcher",
            hint="name one that is on the PATH, or leave it out: --set compare.launcher=[]",
        )
    for name in config.signal.contexts:
        try:
            find_design(name)
        except ConfigError as error:
            raise ConfigError(error.what, where="signal.contexts", hint=error.hint) from None
    shared = changed(config, {"evaluation.at_start": False}, "comparison")  # the base is evaluated once for all
    tasks = [Task(BASE, base_config(config), out / "arms" / BASE)]
    for arm, seed in itertools.product(config.compare.arms, config.compare.seeds):
        name = f"{arm.name}/seed-{seed}"
        tasks.append(Task(name, arm_config(shared, arm, seed), out / "arms" / name))
        _check_anchors(shared, arm, tasks[-1].config)
        check_recipe(tasks[-1].config)
    if config.signal.num_rollouts and config.signal.contexts:
        tasks.append(Task(SIGNAL, base_config(config), out))
    return tasks


def in_order(tasks: Sequence[Task], seeds: Sequence[int]) -> list[Task]:
    """One seed of all arms before the next, for whole rows where a comparison is cut short; of a seed, the longest."""
    names = [f"seed-{seed}" for seed in seeds[1:]]

    def round_of(task: Task) -> int:
        seed = task.name.partition("/")[2]
        return names.index(seed) + 1 if seed in names else 0

    return sorted(tasks, key=lambda task: (round_of(task), -task.cost))


def _check_anchors(shared: Config, arm: ArmSection, config: Config) -> None:
    """Refuse an arm whose numbers would not stand beside those of the others, nor of the untrained solver."""
    for key in arm.set:
        if key == "training.seed":
            raise ConfigError(
                "seeds are the same for all arms", where=f"arm {arm.name}: {key}", hint="--set 'compare.seeds=[0, 1]'"
            )
        if key.startswith(SHARED) and key not in OWN:
            raise ConfigError(
                f"an arm cannot set {key}: every arm starts from the same solver and is evaluated in the same way",
                where=f"arm {arm.name}: {key}",
                hint="set it for the whole recipe, or train it by itself: stepalign report shows several runs",
            )
    if config.evaluation_length != shared.evaluation_length:
        raise ConfigError(
            f"the arm would be evaluated with {config.evaluation_length} tokens a completion, and the untrained solver "
            f"with {shared.evaluation_length}",
            where=f"arm {arm.name}: sampling.max_completion_length",
            hint=f"--set evaluation.max_completion_length={max(config.evaluation_length, shared.evaluation_length)}",
        )


def base_config(config: Config) -> Config:
    """The untrained solver: no step, one evaluation."""
    return changed(config, {"compare": {}, "training.max_steps": 0, "evaluation.at_start": True}, "base")


def describe_arms(config: Config, out: Path) -> str:
    """One line per arm with the keys in which it differs. Raises ConfigError as ``plan`` does."""
    plan(config, out)
    lines = []
    for name, keys in arm_differences(config).items():
        changes = ", ".join(f"{key} = {value!r}" for key, value in keys.items())
        lines.append(f"arm {name}: {changes or 'as the shared configuration'}")
    return "\n".join(lines)


def compare(
    recipe: str | Path,
    overrides: Settings | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Compare the arms of a recipe, as ``stepalign compare`` does; returns results.json (docs/formats.md).

    Arguments as for ``train``, errors as for ``compare_config``. The runs are processes of their own.
    """
    with for_python(listener) as heard:
        config = changed(load_config(recipe), parse_settings(overrides or {}), "overrides")
        return compare_config(config, str(recipe), Path(out), resume=resume, listener=heard)


def compare_config(config: Config, recipe: str, out: Path, *, resume: bool, listener: Listener) -> dict[str, Any]:
    """Run the whole grid and write results.json and report.html.

    Raises:
        ConfigError, EndpointError, LockedError: as the runs do.
        RunsFailedError: some runs failed; the others are finished, and results and page show them.
        Interrupted: asked to stop; every run has saved itself.
    """
    start = time.perf_counter()
    config = as_before(config, out)
    tasks = plan(config, out)  # every arm must be valid before the first one runs
    inputs = _check_inputs(tasks)
    RunFolder.check(out, config, resume=resume, kind="comparison", extra=RUN_FILES)
    _check_critics(tasks)
    num_test = len(load_set(config.data, "test").problems)
    if num_test > 1:
        listener(line(detectable_difference(num_test, config.evaluation.num_samples, len(config.compare.seeds))))
    device, dtype = model_choice(config.model)
    listener(line(f"solver {config.model.path} on {device} in {dtype}"))
    for arm, found in inputs.items():
        with _named(arm):
            run_checks(found, loads_model=True)
    with RunFolder(out, config, resume=resume, kind="comparison", extra=RUN_FILES):
        open_tasks = in_order([task for task in tasks if not task.finished], config.compare.seeds)
        for task in tasks:
            listener(
                Event(kind="finished", run=task.name)
                if task.finished
                else Event(kind="progress", name="waiting", run=task.name)
            )
        failures: dict[str, UserError] = {}
        if open_tasks:
            jobs = [_job(task, out, config.compare.launcher) for task in open_tasks]
            with PROCESS.held("stopping: every run saves itself; once more stops at once") as stop:
                failures = run_all(jobs, config.compare.processes, stop=stop, listener=listener)
        elif (out / "results.json").exists():
            rewrite_results(out)  # nothing left to run: the times of the first time stand
            return read_json(out / "results.json")
        worked = time.perf_counter() - start
        _count_problems(tasks[0])
        results = collect_results(config, recipe, out)
        results["failures"] = {name: error.what for name, error in failures.items()}
        reporting = time.perf_counter()
        publish(results, out)
        results["timings"] |= {"report": time.perf_counter() - reporting, "total": time.perf_counter() - start}
        results["timings"]["workers"] = worked
        publish(results, out)  # once more, with its own time in it
    if failures:
        spent = [error for error in failures.values() if isinstance(error, BudgetSpentError)]
        raise spent[0] if len(spent) == len(failures) else RunsFailedError(failures, out)
    return results


def _job(task: Task, out: Path, launcher: tuple[str, ...]) -> Job:
    """Write the recipe of a run beside its folder: the command that does it, and that anybody can give again."""
    place = out / "arms" / task.name
    recipe = place.with_name(f"{place.name}.toml")
    config = task.config
    if config.critic.kind == "endpoint" and not config.critic.cache:  # runs share what was paid for
        config = changed(config, {"critic.cache": str((out / CACHE).absolute())}, "comparison")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe, to_toml(config))
    if task.name == SIGNAL:
        command = (sys.executable, "-m", "stepalign", "signal-of-base", str(recipe), "--out", str(out))
    else:
        words = ("train", str(recipe), "--out", str(task.folder), "--resume")
        command = (*launcher, sys.executable, "-m", "stepalign", *words)
    read_back = load_config(str(recipe))  # without the passwords that addresses may have: those stay in memory
    urls = {key: now for key, (_, now) in difference(read_back, config).items()}
    private = {CRITIC_URLS: urls.pop("critic.base_urls", None), PRIVATE_URLS: urls}
    return Job(
        name=task.name,
        command=command,
        folder=task.folder,
        log=recipe.with_suffix(".log"),
        num_steps=config.training.max_steps,
        environment={name: json.dumps(value) for name, value in private.items() if value},
    )


def _count_problems(base: Task) -> None:
    """Write down how many problems each set of the comparison has, once its untrained solver is evaluated."""
    file = base.folder / "sets.json"
    if base.finished and not file.exists():
        write_json(file, count_problems(base.folder))
        note_sums(base.folder, file)


def _check_inputs(tasks: list[Task]) -> dict[str, Inputs]:
    """Find out before anything is written what every run would stumble over: its keys, its files, its prompts.

    Returns:
        By arm what the checks have loaded, for those that load the model.
    """
    inputs: dict[str, Inputs] = {}
    for task in tasks:
        arm = task.name.partition("/")[0]  # seeds differ in nothing that is looked at
        if not task.finished and task.name != SIGNAL and arm not in inputs:
            inputs[arm] = Inputs(task.config)
            with _named(arm):
                run_checks(inputs[arm], loads_model=False)
    return inputs


@contextmanager
def _named(arm: str) -> Iterator[None]:
    """A wrong recipe names the arm that it belongs to; what the untrained solver stumbles over concerns them all."""
    try:
        yield
    except ConfigError as error:
        if arm != BASE:
            error.where = f"arm {arm}: {error.where}"
        raise


def _check_critics(tasks: list[Task]) -> None:
    """Find out before anything is written whether the critic answers. Finished runs need none."""
    needed: dict[str, tuple[Config, list[str]]] = {}
    for task in tasks:
        names = (
            list(task.config.signal.contexts) if task.name == SIGNAL else [find_condition(task.config.condition).design]
        )
        if not task.finished and task.name != BASE:
            needed.setdefault(task.config.critic.model_dump_json(), (task.config, []))[1].extend(names)
    for config, names in needed.values():
        check_critic(config, names)
