"""``stepalign evaluate``: one model, one file of problems, every metric."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from stepalign.build import open_session, prompt_templates
from stepalign.config import Config, EnvironmentSection, Settings, changed, parse_settings
from stepalign.domains.table import holds_sets, load_set
from stepalign.errors import ConfigError, LockedError
from stepalign.evaluation.evaluate import EvaluatedProblem, read_samples, win_row
from stepalign.events import Listener, line, warning
from stepalign.models.places import find_model, weight_files
from stepalign.records import Problem
from stepalign.storage.files import read_json, write_atomically, write_json
from stepalign.storage.fingerprint import sha256_of_file
from stepalign.storage.sums import sum_of_tree
from stepalign.verbs.checks import refuse_long_questions
from stepalign.verbs.configs import config_for_model
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.progress import for_python


def evaluate(
    model: str | Path,
    *,
    problems: str | Path,
    out: str | Path,
    recipe: str = "",
    overrides: Settings | None = None,
    samples: str | Path | None = None,
    against: str | Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Evaluate a model, as ``stepalign evaluate`` does; returns what OUT holds.

    Args:
        model: ``embedded:arithmetic``, a model folder, a Hub name, or a run folder.
        problems: a JSONL file, or ``embedded:arithmetic`` for its test set.
        out: JSON file for the numbers.
        recipe: where prompts and sampling come from; the model's own run or the defaults when empty.
        overrides: dotted keys and their values, such as {"evaluation.num_samples": 4}.
        samples: JSON lines for the completions; beside OUT when None.
        against: completions of another evaluation, for the win rate over them.

    Raises:
        ConfigError, LockedError: as ``evaluate_model``.
    """
    with for_python(listener) as heard:
        config, origin = config_for_model(str(model), recipe, None, {})
        config = changed(config, parse_settings(overrides or {}), "overrides")
        place, other = (None if one is None else Path(one) for one in (samples, against))
        return evaluate_model(config, str(problems), Path(out), heard, place, origin=origin, against=other)


def evaluate_model(
    config: Config,
    problems: str,
    out: Path,
    listener: Listener,
    samples: Path | None = None,
    *,
    origin: str = "",
    against: Path | None = None,
) -> dict[str, Any]:
    """Sample, grade and measure. The completions of a finished problem are kept at once: the same call goes on there.

    Arguments as for ``evaluate``; ``origin`` says where the settings come from, for the reader.

    Raises:
        ConfigError: no problems, or anything wrong with model or file.
        LockedError: the completions beside OUT belong to another evaluation.
    """
    config = changed(config, {"data.test": problems}, "evaluate")
    found = load_set(config.data, "test")
    if not found.problems:
        raise ConfigError("there are no problems to evaluate", where=problems)
    found.say_skipped(listener)
    others = [] if against is None else _other_completions(against, found.problems)
    samples = samples or out.with_suffix(".samples.jsonl")
    key_file = samples.with_suffix(".json" if samples.with_suffix(".json") != out else ".key.json")
    find_model(config.model.path)
    prompt_templates(config)
    known = _key(config, problems)
    key = json.dumps(known, indent=1) + "\n"
    if against is not None:
        _refuse_another_judge(against, known, listener)
    if samples.exists() and (not key_file.exists() or key_file.read_text(encoding="utf-8") != key):
        raise LockedError(
            "the completions beside the output belong to another evaluation",
            where=str(samples),
            hint="give another --out, or remove that file",
        )
    _refuse_changed_samples(out, samples)
    if out.exists() and not samples.exists():
        listener(warning(f"{samples} is missing: its completions are drawn again"))
    student = config.prompts.student.strip().splitlines()[0]
    taken = f" (from {origin}; --recipe or --set change it)" if origin else ""
    what = f"student prompt {student!r}, at most {config.evaluation_length} tokens, temperature"
    listener(line(f"{what} {config.evaluation.temperature:g}{taken}"))
    refuse_long_questions(Inputs(config), "test", found.problems)
    with closing(open_session(config, listener)) as session:
        write_atomically(key_file, key)
        done, rows = session.measure(found.problems, "test", samples, listener)
    section = config.evaluation
    if others:
        won = win_row(done, others, level=section.confidence, resamples=section.bootstrap_samples)
        if math.isnan(won["value"]):
            listener(warning("the win rate is undefined: all completions of a problem are undecided on one side"))
        rows.append(won)
    undecided = next((row["value"] for row in rows if row["metric"] == "undecided_share"), 0.0)
    if undecided > 0:
        share = f"{100 * undecided:.1f} % of the completions are undecided and count as not correct"
        listener(warning(f"{share}: the grader failed, or had no time (data.grader, data.grader_seconds)"))
    result = {
        "model": config.model.path,
        "problems": f"{problems} (test)" if holds_sets(problems) else problems,
        "num_problems": len(done),
        "skipped": dict(found.skipped),
        "num_samples": section.num_samples,
        "temperature": section.temperature,
        "max_completion_length": config.evaluation_length,
        "samples": str(samples),
        "samples_sha256": sha256_of_file(samples),
        "settings_sha256": sha256_of_file(key_file),
        **({"against": str(against)} if against else {}),
        "confidence": section.confidence,
        "tie_rule": "maj@k: ties share the win equally; unparsed answers neither vote nor win",
        "metrics": rows,
    }
    write_json(out, {**result, "sha256": sum_of_tree(result)})
    return result


def _other_completions(against: Path, problems: Sequence[Problem]) -> list[EvaluatedProblem]:
    """The completions of another evaluation. Raises ConfigError where there are none, or those of other problems."""
    if not against.is_file():
        raise ConfigError("there are no completions", where=str(against), hint="name the .samples.jsonl of evaluate")
    others = read_samples(against)
    if {problem.problem_id for problem in problems} != {problem.problem_id for problem in others}:
        hint = "evaluate both on one file"
        raise ConfigError("these completions are of other problems", where=str(against), hint=hint)
    return others


def settings_of(samples: Path) -> dict[str, Any] | None:
    """What stored completions and verdicts depend on, as ``evaluate`` leaves it beside them; None: not on record."""
    files = [file for end in (".key.json", ".json") if (file := samples.with_suffix(end)).is_file()]
    return next((found for file in files if "grader" in (found := read_json(file))), None)


def _refuse_another_judge(against: Path, ours: dict[str, Any], listener: Listener) -> None:
    """A win over completions that another grader has scored says nothing. Raises ConfigError."""
    theirs = settings_of(against)
    if theirs is None or ("judge" in ours and "judge" not in theirs):
        if "judge" in ours or ours["grader"][0]:
            listener(warning(f"it is not on record by which judge the completions of {against} were scored"))
    elif theirs["grader"][:1] != ours["grader"][:1] or theirs.get("judge") != ours.get("judge"):
        raise ConfigError(
            "these completions were scored by another judge or grader",
            where=str(against),
            hint="evaluate both with the same data.judge, data.second_judge and data.grader",
        )


def _refuse_changed_samples(out: Path, samples: Path) -> None:
    """Completions that were changed since the numbers in OUT were computed from them are no evaluation."""
    before: dict[str, Any] = {}
    with suppress(ConfigError):  # without numbers, or with damaged ones: they are computed again
        before = read_json(out)
    if before.get("samples") != str(samples) or "samples_sha256" not in before or not samples.exists():
        return
    if sha256_of_file(samples) != before["samples_sha256"]:
        raise ConfigError(
            "the completions beside the output are not those that its numbers come from",
            where=str(samples),
            hint=f"put the file back as it was, or remove {out} to compute them from these",
        )


def _key(config: Config, problems: str) -> dict[str, Any]:
    """Everything that completions and verdicts depend on, as far as the configuration knows."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "prompts", "evaluation")}
    reached = {"served": {"base_urls", "api_key_env", "cache"}}
    usual = EnvironmentSection().model_dump(mode="json", exclude=reached)
    environment = config.environment.model_dump(mode="json", exclude=reached)
    judges = [
        {name: getattr(judge, name) for name in ("model", "temperature", "max_tokens", "extra_body")}
        for judge in (config.data.judge, config.data.second_judge)
        if judge.base_urls
    ]
    more = {  # where they are named: folders of earlier versions know none of them
        "judge": judges,
        "stop": list(config.sampling.stop),
        "environment": {name: value for name, value in environment.items() if value != usual[name]},
    }
    weights = [(file.name, file.stat()) for file in weight_files(config.model.path)]
    return {
        **sections,
        "weights": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in weights},
        "max_completion_length": config.evaluation_length,
        "problems": problems,
        "columns": config.data.columns,
        "grader": [config.data.grader_function, config.data.grader_seconds],
        "rho": config.data.rho,
        **{name: value for name, value in more.items() if value},
    }
