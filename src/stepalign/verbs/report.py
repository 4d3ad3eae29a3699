"""``stepalign report``: the page and tables of a comparison, or of training runs read as if they were one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepalign.config import Config, arm_config, changed, difference, load_config
from stepalign.domains.table import load_sets
from stepalign.errors import ConfigError
from stepalign.evaluation.comparison import comparison_numbers
from stepalign.evaluation.evaluate import read_samples
from stepalign.events import Listener, silent, warning
from stepalign.storage.files import read_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.sums import SUMS, check_sums, damaged_since, note_sums
from stepalign.training.timeline import strip, write_trace

BASE = "base"
SIGNAL = "signal"
PAGES = ("results.json", "results.md", "results.tex", "results.csv", "report.html", "timeline.json")
"""Files that ``report`` writes again."""
RUN_KEYS = ("critic", "masked", "warnings", "seconds_by_phase")


def write_reports(folders: Sequence[Path], out: Path | None = None, listener: Listener = silent) -> Path:
    """Write page and tables of a comparison folder, of a run, or of several runs side by side, finished or not; of a
    file of completions, as ``evaluate`` leaves it, the page beside it.

    Args:
        out: folder of the page of several runs; by default the one folder itself.
        listener: hears of damaged files.

    Raises:
        ConfigError: several runs without ``out``; as :func:`run_results`.
    """
    if len(folders) == 1 and folders[0].suffix == ".jsonl":
        from stepalign.report.completions import write_completions_page

        (file,) = folders
        if not file.is_file():
            raise ConfigError("there is no such file", where=str(file), hint="give what evaluate has written")
        return write_completions_page(read_samples(file), file.name, (out or file.parent) / f"{file.stem}.html")
    if len(folders) == 1 and (folders[0] / "arms").is_dir():
        return rewrite_results(folders[0], listener)
    if len(folders) > 1 and out is None:
        raise ConfigError("several runs need a place for their page", hint="--out FOLDER")
    from stepalign.report.page import write_run_report
    from stepalign.report.table import write_tables

    results = run_results(folders)
    _say_damage(results, listener)
    for folder in folders:  # a run that goes on has none yet
        write_trace(folder)
        note_sums(folder, *pages_of(folder))
    page = write_run_report(results, out or folders[0], examples=folders[0])
    write_tables(results, out or folders[0])
    note_sums(out or folders[0], *pages_of(out or folders[0]))
    return page


# ---------------------------------------------------------------------------------------------------------------------
# A comparison


def arm_differences(config: Config) -> dict[str, dict[str, Any]]:
    """For each arm the keys, with values, in which it differs from the shared configuration."""
    seed = config.compare.seeds[0]
    shared = changed(config, {"compare": {}, "training.seed": seed}, "comparison")
    return {
        arm.name: {key: new for key, (_, new) in difference(shared, arm_config(config, arm, seed)).items()}
        for arm in config.compare.arms
    }


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
            {"path": str(folder.relative_to(out)), "seed": seed, **read_json(folder / "summary.json")}
            for seed, folder in done.items()
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
    groups = {name: folders for name, folders in {BASE: base, **runs_of}.items() if folders}
    numbers = comparison_numbers(groups, config.evaluation, config.ks)
    mark_gradients(arms, numbers["training"])
    summaries = [run for arm in arms for run in arm["runs"]]
    phases = {
        name: sum(run.get("seconds_by_phase", {}).get(name, 0.0) for run in summaries)
        for name in ("sampling", "feedback", "learning", "evaluation", "saving")
    }
    return {
        "format": 1,
        "version": made_by.get("stepalign"),
        "revision": made_by.get("revision"),
        "recipe": recipe,
        "model": config.model.path,
        "seeds": list(config.compare.seeds),
        "budget": {"rule": config.compare.budget, "size": config.compare.budget_size},
        "problems": count_problems(out / "arms" / BASE) if base else {},
        "arms": arms,
        **numbers,
        "timings": phases,
        "peak_memory_bytes": max([run.get("peak_memory_bytes", 0) for run in summaries], default=0),
    }


def count_problems(base: Path) -> dict[str, int]:
    """Set -> its number of problems, as the finished comparison has written it down; before that, counted."""
    if (file := base / "sets.json").exists():
        return read_json(file)
    return {name: len(found.problems) for name, found in load_sets(load_config(str(base / "config.toml")).data).items()}


def mark_gradients(arms: Sequence[dict[str, Any]], training: Sequence[Mapping[str, Any]]) -> None:
    """Set ``steps_without_gradient`` of every run, and whether any step of an arm had a gradient in ``trained``: None
    before the first step. An arm without one is no result."""
    norms = {(row["arm"], row["seed"]): [point["grad_norm"] for point in row["points"]] for row in training}
    for arm in arms:
        own = [norms.get((arm["name"], run["seed"]), []) for run in arm["runs"]]
        for run, found in zip(arm["runs"], own, strict=True):
            run["steps_without_gradient"] = sum(norm == 0 for norm in found)
        arm["trained"] = any(norm != 0 for found in own for norm in found) if any(own) else None


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The cost of a comparison, for the terminal."""
    clock, whole = results["timings"], ("workers", "report", "total")
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in clock.items() if name not in whole)
    return [
        *(
            f"warning: {arm['label']} did not train: no step of its runs had a gradient, so its numbers are "
            "those of the untrained solver and no result of the method"
            for arm in results["arms"]
            if arm["trained"] is False
        ),
        f"time: {clock['total']:.0f} s on the clock; summed over the runs: {spent}",
        f"memory: at most {results['peak_memory_bytes'] / 2**20:.0f} MiB a process",
    ]


def _say_damage(results: Mapping[str, Any], listener: Listener) -> None:
    for row in results["damage"]:
        listener(warning(f"{row['arm']}, seed {row['seed']} is shown without test results: {row['reason']}"))


def rewrite_results(folder: Path, listener: Listener = silent) -> Path:
    """results.json and report.html of a comparison folder again, from whatever runs are finished.

    Raises:
        ConfigError: not a comparison folder.
    """
    file = folder / "config.toml"
    if not file.exists() or not (folder / "arms").is_dir():
        raise ConfigError(
            "not a comparison folder: config.toml or arms/ is missing",
            where=str(folder),
            hint="give the --out of stepalign compare",
        )
    check_sums(folder, "config.toml", "versions.json", "signal.json")
    before = folder / "results.json"
    old = read_json(before, hint="remove the file: it is written again") if before.exists() else {}
    config = load_config(str(file))
    results = collect_results(config, old.get("recipe", str(file)), folder)
    done = {str(file.parent.relative_to(folder / "arms")) for file in (folder / "arms").rglob("summary.json")}
    done |= {SIGNAL} if (folder / "signal.json").exists() else set()
    results["failures"] = {name: why for name, why in old.get("failures", {}).items() if name not in done}
    _say_damage(results, listener)
    for run in sorted(sums.parent for sums in (folder / "arms").rglob(SUMS)):
        for name, what in [] if (run / "summary.json").exists() else damaged_since(run, "summary.json"):
            listener(warning(f"{run / name} {what}: the run is left out"))
    results["timings"] |= {k: v for k, v in old.get("timings", {}).items() if k not in results["timings"]}
    return publish(results, folder)


def pages_of(folder: Path) -> list[Path]:
    """The pages and tables that are there."""
    return [path for name in PAGES if (path := folder / name).exists()]


def publish(results: dict[str, Any], out: Path) -> Path:
    """Write results.json, its tables, and the page that shows it."""
    from stepalign.report.page import write_report
    from stepalign.report.table import write_tables

    write_tables(results, out)
    page = write_report(out)
    note_sums(out, *pages_of(out))
    return page


# ---------------------------------------------------------------------------------------------------------------------
# Runs side by side


def run_results(folders: Sequence[Path]) -> dict[str, Any]:
    """The contents of a results.json (docs/formats.md); runs that differ in their seed alone are one arm.

    Arms are paired only where their test problems are the same. Unfinished runs are shown as far as they are.

    Raises:
        ConfigError: a folder is no run, or runs were evaluated with different n.
    """
    configs = {folder: _config(folder) for folder in folders}
    first = next(iter(configs.values()))
    sizes = {config.evaluation.num_samples for config in configs.values()}
    if len(sizes) > 1:
        raise ConfigError(
            f"the runs were evaluated with different n: {sorted(sizes)}",
            where=", ".join(map(str, folders)),
            hint="report them one by one, or measure their models with stepalign evaluate --n",
        )
    arms = _arms(configs)
    numbers = comparison_numbers(arms, first.evaluation, first.ks)
    if len({problems for folder in folders if (problems := _test_problems(folder))}) > 1:
        numbers["paired"] = []
    versions = read_json(folders[0] / "versions.json")
    listed = [_arm(name, runs, configs) for name, runs in arms.items()]
    mark_gradients(listed, numbers["training"])
    return {
        "format": 1,
        "kind": "runs",
        "version": versions.get("stepalign"),
        "revision": versions.get("revision"),
        "recipe": ", ".join(str(folder / "config.toml") for folder in folders),
        "model": first.model.path if len({config.model.path for config in configs.values()}) == 1 else None,
        "seeds": sorted({seed for runs in arms.values() for seed in runs}),
        "arms": listed,
        **numbers,
    }


def _config(folder: Path) -> Config:
    file = folder / "config.toml"
    if not file.exists():
        raise ConfigError(
            "not a comparison folder and not a run: config.toml is missing",
            where=str(folder),
            hint="give the --out of stepalign train or compare",
        )
    check_sums(folder, "config.toml", "versions.json")
    return load_config(str(file))


def _arms(configs: Mapping[Path, Config]) -> dict[str, dict[int, Path]]:
    """Folders by arm name and seed."""
    groups: dict[str, dict[int, Path]] = {}
    for folder, config in configs.items():
        key = changed(config, {"training.seed": 0}).model_dump_json()
        runs = groups.setdefault(key, {})
        if config.training.seed in runs:  # the same run twice, such as before and after a change of the code
            runs = groups.setdefault(f"{key} {folder}", {})
        runs[config.training.seed] = folder
    named: dict[str, dict[int, Path]] = {}
    for runs in groups.values():
        folder = next(iter(runs.values()))
        short = folder.parent.name if folder.name.startswith("seed-") else folder.name
        named[short if short not in named else str(folder)] = runs
    return named


def _arm(name: str, runs: Mapping[int, Path], configs: Mapping[Path, Config]) -> dict[str, Any]:
    own = configs[next(iter(runs.values()))]
    shared = changed(next(iter(configs.values())), {"training.seed": own.training.seed})
    return {
        "name": name,
        "label": name,
        "condition": own.condition,
        "config_diff": {key: new for key, (_, new) in difference(shared, own).items()},
        "runs": [
            {"seed": seed, "path": str(folder), **_totals(folder, configs[folder])} for seed, folder in runs.items()
        ],
    }


def _totals(folder: Path, config: Config) -> dict[str, Any]:
    """The cost of a run so far: from its last step, or, where only a checkpoint has it, from the newest one."""
    last: dict[str, Any] = {}
    with suppress(ConfigError, OSError):  # the damage is reported with the numbers
        for row in read_json_lines(folder / "metrics.jsonl"):
            last = row
    states = sorted((folder / "checkpoints").glob("step-*/state.json"))
    saved = read_json(states[-1]).get("progress", {}) if states else {}
    critic = {**saved.get("critic", {}), "findings": saved.get("findings", {}) if config.critic.judged else None}
    return {
        "steps": last.get("step", 0),
        "rollouts": last.get("total_rollouts", 0),
        "completion_tokens": last.get("total_tokens", 0),
        "seconds": last.get("seconds"),
        **{key: saved[key] for key in RUN_KEYS if key in saved},
        "strip": strip(folder),
        "critic": critic,
    }


def _test_problems(folder: Path) -> tuple[str, ...]:
    files = sorted((folder / "samples").glob("step-*-test.jsonl"))
    with suppress(ConfigError, OSError):
        return tuple(problem.problem_id for problem in read_samples(files[-1])) if files else ()
    return ()
