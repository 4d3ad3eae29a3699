"""``stepalign report``: the page and tables of a comparison, or of training runs read as if they were one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign.config import Config, changed, difference, load_config
from stepalign.errors import ConfigError
from stepalign.evaluation.comparison import comparison_numbers
from stepalign.evaluation.evaluate import read_samples
from stepalign.report.page import write_run_report
from stepalign.report.table import write_tables
from stepalign.storage.jsonl import read_json_lines

RUN_KEYS = ("critic", "masked", "warnings", "seconds_by_phase")


def write_reports(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write page and tables of a comparison folder, of a run, or of several runs side by side, finished or not.

    Args:
        out: folder of the page of several runs; by default the one folder itself.

    Raises:
        ConfigError: several runs without ``out``; as :func:`run_results`.
    """
    if len(folders) == 1 and (folders[0] / "arms").is_dir():
        from stepalign.verbs.compare import rewrite_results

        return rewrite_results(folders[0])
    if len(folders) > 1 and out is None:
        raise ConfigError("several runs need a place for their page", hint="--out FOLDER")
    results = run_results(folders)
    page = write_run_report(results, out or folders[0], examples=folders[0])
    write_tables(results, out or folders[0])
    return page


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
    if len({_test_problems(folder) for folder in folders}) > 1:
        numbers["paired"] = []
    versions = json.loads((folders[0] / "versions.json").read_text(encoding="utf-8"))
    return {
        "format": 1,
        "kind": "runs",
        "version": versions["stepalign"],
        "revision": versions["revision"],
        "recipe": ", ".join(str(folder / "config.toml") for folder in folders),
        "model": first.model.path if len({config.model.path for config in configs.values()}) == 1 else None,
        "seeds": sorted({seed for runs in arms.values() for seed in runs}),
        "arms": [_arm(name, runs, configs) for name, runs in arms.items()],
        **numbers,
    }


def _config(folder: Path) -> Config:
    file = folder / "config.toml"
    if not file.exists():
        raise ConfigError("not a comparison folder and not a run: config.toml is missing", where=str(folder))
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
    steps = list(read_json_lines(folder / "metrics.jsonl"))
    last = steps[-1] if steps else {}
    states = sorted((folder / "checkpoints").glob("step-*/state.json"))
    saved = json.loads(states[-1].read_text(encoding="utf-8"))["progress"] if states else {}
    critic = {**saved.get("critic", {}), "findings": saved.get("findings", {}) if config.critic.judged else None}
    return {
        "steps": last.get("step", 0),
        "rollouts": last.get("total_rollouts", 0),
        "completion_tokens": last.get("total_tokens", 0),
        "seconds": last.get("seconds"),
        **{key: saved[key] for key in RUN_KEYS if key in saved},
        "critic": critic,
    }


def _test_problems(folder: Path) -> tuple[str, ...]:
    files = sorted((folder / "samples").glob("step-*-test.jsonl"))
    return tuple(problem.problem_id for problem in read_samples(files[-1])) if files else ()
