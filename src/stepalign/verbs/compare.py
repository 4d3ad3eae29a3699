"""The comparison: arms x seeds from one base, a few at a time, then the analysis and the page.

Every arm is an ordinary run in its own folder; arms differ from the shared configuration in the keys the recipe names
and in nothing else. Workers are processes with one torch thread each. A finished run has a summary and is not done
again, so an interrupted comparison continues where it stopped.
"""

from __future__ import annotations

import itertools
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepalign.config import ArmSection, Config, arm_config, changed, check_checkpoint_rule, difference
from stepalign.critics import RUN_FILES
from stepalign.errors import BudgetSpentError, ConfigError, UserError
from stepalign.evaluation.comparison import ArmRuns, comparison_numbers
from stepalign.events import Event, Listener
from stepalign.feedback.designs import find_condition, find_design
from stepalign.rollouts.credit import check_terms
from stepalign.stopping import StopRequest
from stepalign.storage.files import read_json, write_json
from stepalign.storage.run_folder import RunFolder
from stepalign.verbs.workers import Send, work_off

BASE = "base"
SIGNAL = "signal"
SHARED = (
    *("model.path", "prompts.student", "prompts.system"),
    *("data.validation", "data.test", "data.max_validation", "data.max_test", "data.grader"),
    *("evaluation.", "signal.", "selection.", "compare."),
)
"""Beginnings of keys that no arm may set: all arms start from one untrained solver and answer the same questions."""
OWN = ("evaluation.eval_steps",)
"""What an arm may set all the same."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work for a worker."""

    name: str
    """"ARM/seed-N", "base", or "signal"."""
    config: Config
    folder: Path
    comparison: Path
    """The folder of the whole comparison, where runs share the critic's replies."""

    @property
    def finished(self) -> bool:
        return (self.folder / ("signal.json" if self.name == SIGNAL else "summary.json")).exists()

    @property
    def cost(self) -> float:
        """Completions to sample, roughly: the longest run starts first."""
        config = self.config
        if self.name == SIGNAL:
            return 8.0 * config.signal.num_rollouts
        per_step = config.sampling.num_generations * config.training.problems_per_step
        return per_step * config.training.max_steps + 1000.0


class RunsFailedError(UserError):
    """Some runs of a comparison failed. Its exit code is theirs where they agree."""

    def __init__(self, failures: Mapping[str, UserError], out: Path) -> None:
        first = next(iter(failures.values()))
        names_of: dict[str, list[str]] = {}
        for name, error in failures.items():
            names_of.setdefault(error.what, []).append(name)
        each = "; ".join(f"{', '.join(names)}: {what}" for what, names in names_of.items())
        runs = "one run" if len(failures) == 1 else f"{len(failures)} runs"
        super().__init__(f"{runs} failed; {each}", where=first.where or str(out), hint=first.hint)
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
        raise ConfigError(f"an arm cannot be called {BASE}: that is the untrained solver", where="compare.arms")
    if not config.compare.seeds or len(set(config.compare.seeds)) != len(config.compare.seeds):
        raise ConfigError("seeds must be given, and differ", where=f"compare.seeds = {list(config.compare.seeds)}")
    for name in config.signal.contexts:
        find_design(name)
    shared = changed(config, {"evaluation.at_start": False}, "comparison")  # the base is evaluated once for all
    tasks = [Task(BASE, base_config(config), out / "arms" / BASE, out)]
    for arm, seed in itertools.product(config.compare.arms, config.compare.seeds):
        name = f"{arm.name}/seed-{seed}"
        tasks.append(Task(name, arm_config(shared, arm, seed), out / "arms" / name, out))
        _check_anchors(shared, arm, tasks[-1].config)
        check_terms(tasks[-1].config)
        check_checkpoint_rule(tasks[-1].config)
    if config.signal.num_rollouts and config.signal.contexts:
        tasks.append(Task(SIGNAL, base_config(config), out, out))
    return tasks


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


def arm_differences(config: Config) -> dict[str, dict[str, Any]]:
    """For each arm the keys, with values, in which it differs from the shared configuration."""
    seed = config.compare.seeds[0]
    shared = changed(config, {"compare": {}, "training.seed": seed}, "comparison")
    return {
        arm.name: {key: new for key, (_, new) in difference(shared, arm_config(config, arm, seed)).items()}
        for arm in config.compare.arms
    }


def compare(config: Config, recipe: str, out: Path, *, resume: bool, listener: Listener) -> dict[str, Any]:
    """Run the whole grid and write results.json and report.html.

    Raises:
        ConfigError, EndpointError, LockedError: as the runs do.
        RunsFailedError: some runs failed; the others are finished, and results and page show them.
        KeyboardInterrupt: asked to stop; every run has saved itself.
    """
    start = time.perf_counter()
    tasks = plan(config, out)
    _check_inputs(tasks)
    stop = StopRequest("stopping: every run saves itself after its step; Ctrl-C once more stops at once")
    with RunFolder(out, config, resume=resume, kind="comparison", extra=RUN_FILES), stop.listening():
        _check_critics(tasks)
        open_tasks = sorted((t for t in tasks if not t.finished), key=lambda t: -t.cost)
        for task in tasks:
            listener(
                Event(kind="finished", run=task.name)
                if task.finished
                else Event(kind="progress", name="waiting", run=task.name)
            )
        failures: dict[str, UserError] = {}
        if open_tasks:
            num_workers = min(config.compare.processes, len(open_tasks))
            failures = work_off(open_tasks, run_task, num_workers, stop=stop, listen=_passed_on(listener))
            if stop.asked:
                raise KeyboardInterrupt
        elif (out / "results.json").exists():
            rewrite_results(out)  # nothing left to run: the times of the first time stand
            return read_json(out / "results.json")
        worked = time.perf_counter() - start
        results = collect_results(config, recipe, out)
        results["failures"] = {name: error.what for name, error in failures.items()}
        reporting = time.perf_counter()
        _publish(results, out)
        results["timings"] |= {"report": time.perf_counter() - reporting, "total": time.perf_counter() - start}
        results["timings"]["workers"] = worked
        _publish(results, out)  # once more, with its own time in it
    if failures:
        spent = [error for error in failures.values() if isinstance(error, BudgetSpentError)]
        raise spent[0] if len(spent) == len(failures) else RunsFailedError(failures, out)
    return results


def _passed_on(listener: Listener) -> Callable[[str, str, Mapping[str, Any]], None]:
    def listen(task: str, kind: str, payload: Mapping[str, Any]) -> None:
        if kind == "event":
            listener(replace(payload["event"], run=task))
        elif kind == "finished":
            listener(Event(kind="finished", run=task))
        elif kind == "failed":
            listener(Event(kind="failed", run=task, text=payload["error"].what))

    return listen


def _publish(results: dict[str, Any], out: Path) -> Path:
    """Write results.json, its tables, and the page that shows it."""
    from stepalign.report.page import write_report
    from stepalign.report.table import write_tables

    write_tables(results, out)
    return write_report(out)


def _check_inputs(tasks: list[Task]) -> None:
    """Find out before anything is written what every run would stumble over: its problems, its model, its prompts."""
    from stepalign.training.preflight import check_inputs

    checked = set()
    for task in tasks:
        arm = task.name.partition("/")[0]  # seeds differ in nothing that is looked at
        if not task.finished and task.name != SIGNAL and arm not in checked:
            checked.add(arm)
            try:
                check_inputs(task.config)
            except ConfigError as error:
                if arm != BASE:  # the others are fine
                    error.where = f"arm {arm}: {error.where}"
                raise


def _check_critics(tasks: list[Task]) -> None:
    """Find out before anything is written whether the critic answers. Finished runs need none."""
    from stepalign.build import check_critic

    needed: dict[str, tuple[Config, list[str]]] = {}
    for task in tasks:
        names = (
            list(task.config.signal.contexts) if task.name == SIGNAL else [find_condition(task.config.condition).design]
        )
        if not task.finished and task.name != BASE:
            needed.setdefault(task.config.critic.model_dump_json(), (task.config, []))[1].extend(names)
    for config, names in needed.values():
        check_critic(config, names)


def collect_results(config: Config, recipe: str, out: Path) -> dict[str, Any]:
    """results.json of the runs that are finished (docs/formats.md)."""
    differences = arm_differences(config)
    made_by = read_json(out / "versions.json")
    arms, runs_of = [], {}
    for arm in config.compare.arms:
        folders = {seed: out / "arms" / arm.name / f"seed-{seed}" for seed in config.compare.seeds}
        done = {seed: folder for seed, folder in folders.items() if (folder / "summary.json").exists()}
        runs_of[arm.name] = done
        runs = [
            {"path": str(folder.relative_to(out)), **read_json(folder / "summary.json")} for folder in done.values()
        ]
        condition = differences[arm.name].get("condition", config.condition)
        arms.append(
            {
                "name": arm.name,
                "label": arm.label or arm.name,
                "condition": condition,
                "config_diff": differences[arm.name],
                "runs": runs,
            }
        )
    base = {0: out / "arms" / BASE} if (out / "arms" / BASE / "summary.json").exists() else {}
    groups = [ArmRuns(name=name, folders=f) for name, f in {BASE: base, **runs_of}.items() if f]
    numbers = comparison_numbers(
        groups,
        ks=config.ks,
        n=config.evaluation.num_samples,
        level=config.evaluation.confidence,
        resamples=config.evaluation.bootstrap_samples,
    )
    summaries = [run for arm in arms for run in arm["runs"]]
    phases = {
        name: sum(run["seconds_by_phase"].get(name, 0.0) for run in summaries)
        for name in ("sampling", "feedback", "learning", "evaluation", "saving")
    }
    return {
        "format": 1,
        "version": made_by["stepalign"],
        "revision": made_by["revision"],
        "recipe": recipe,
        "model": config.model.path,
        "seeds": list(config.compare.seeds),
        "num_samples": config.evaluation.num_samples,
        "temperature": config.evaluation.temperature,
        "confidence": config.evaluation.confidence,
        "checkpoint_rule": config.evaluation.checkpoint_rule,
        "budget": {"rule": config.compare.budget, "size": config.compare.budget_size},
        "problems": read_json(out / "arms" / BASE / "sets.json") if base else {},
        "arms": arms,
        **numbers,
        "timings": phases,
        "peak_memory_bytes": max([run.get("peak_memory_bytes", 0) for run in summaries], default=0),
    }


# ---------------------------------------------------------------------------------------------------------------------
# In a worker


def run_task(task: Task, send: Send, stop: StopRequest) -> None:
    """Do one piece of the comparison; its last file tells that it is finished."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    if task.name == SIGNAL:
        write_signal(task.config, task.folder, _Sender(send))
        return
    from stepalign.training import loop

    done = loop.train(
        task.config, task.folder, resume=True, listener=_Sender(send), stop=stop, shared_folder=task.comparison
    )
    if task.name == BASE:
        from stepalign.domains.sets import load_sets

        sets = {name: len(found.problems) for name, found in load_sets(task.config).items()}
        write_json(task.folder / "sets.json", sets)
    summary = loop.run_summary(task.config, done)
    summary["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_json(task.folder / "summary.json", summary)


class _Sender:
    """A Listener whose words go to the parent process, at most a few a second."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind != "progress" or now - self._last > 0.25:
            self._last = now
            self._send("event", {"event": event})


def write_signal(config: Config, out: Path, listener: Listener) -> Path:
    """Roll out the untrained solver on training problems and analyse what each context would teach."""
    from stepalign.build import (
        arithmetic_probe,
        collect_for_signal,
        more_critiques,
        open_session,
    )
    from stepalign.critics.build import make_rules
    from stepalign.domains.sets import load_set
    from stepalign.models.load import EMBEDDED
    from stepalign.rollouts.order import derive_seed
    from stepalign.signal.analyse import analyse

    session = open_session(config)
    try:
        problems = load_set(config, "train").problems
        triples = collect_for_signal(session, problems, out, seed=derive_seed(config.training.seed, SIGNAL))
        analysis = analyse(
            session.solver,
            session.prompts,
            triples,
            config.signal.contexts,
            temperature=config.sampling.temperature,
            num_shown=config.signal.num_shown,
            top_k=config.signal.top_k,
            model_name=config.model.path,
            wrong_result=arithmetic_probe(session.solver) if config.data.train == EMBEDDED else None,
            more_critiques=more_critiques(
                config, out, triples, config.signal.contexts, make_rules(config, session.grader)
            ),
            listener=listener,
        )
    finally:
        session.close()
    file = out / "signal.json"
    write_json(file, analysis, indent=None)
    return file


def rewrite_results(folder: Path) -> Path:
    """results.json and report.html of a comparison folder again, from whatever runs are finished.

    Raises:
        ConfigError: not a comparison folder.
    """
    from stepalign.config import load_config

    file = folder / "config.toml"
    if not file.exists() or not (folder / "arms").is_dir():
        raise ConfigError("not a comparison folder: config.toml or arms/ is missing", where=str(folder))
    old = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    config = load_config(str(file))
    results = collect_results(config, old.get("recipe", str(file)), folder)
    done = {str(file.parent.relative_to(folder / "arms")) for file in (folder / "arms").rglob("summary.json")}
    done |= {SIGNAL} if (folder / "signal.json").exists() else set()
    results["failures"] = {name: why for name, why in old.get("failures", {}).items() if name not in done}
    results["timings"] |= {k: v for k, v in old.get("timings", {}).items() if k not in results["timings"]}
    return _publish(results, folder)
