"""The numbers of comparisons, evaluations, selections, critiques and signals once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from stepalign.build import open_session
from stepalign.config import Config, changed, load_config
from stepalign.domains.table import make_grader
from stepalign.errors import ConfigError
from stepalign.evaluation.evaluate import metric_rows, metrics_of, read_samples
from stepalign.events import Listener
from stepalign.feedback.designs import find_design
from stepalign.records import Problem
from stepalign.storage.files import finite, read_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.verbs.evaluate import settings_of
from stepalign.verbs.report import collect_results
from stepalign.verbs.verify.run import regrade, verify_run
from stepalign.verbs.verify.verified import Verified

DIGITS_TOLERANCE = 2e-5
"""Nats: numbers that were written with six decimals, scored again in batches of another cut."""


def verify_comparison(folder: Path, found: Verified, num: int, listener: Listener) -> None:
    config = load_config(str(folder / "config.toml"))
    for run in sorted(path.parent for path in (folder / "arms").rglob("config.toml")):
        inner = Verified()
        verify_run(run, inner, num, listener)
        name = str(run.relative_to(folder))
        found.different += [f"{name}/{line}" for line in inner.different]
        found.skipped += [f"{name}: {line}" for line in inner.skipped]
        for kind, count in inner.checked.items():
            found.checked[kind] += count
    if (folder / "results.json").exists():
        stored = read_json(folder / "results.json")
        _results(stored, finite(collect_results(config, stored.get("recipe", ""), folder)), found)
    if (folder / "signal.json").exists():
        _differences_of_rows(read_json(folder / "signal.json").get("rollouts", []), "signal.json", found)


def _results(stored: Mapping[str, Any], made: Mapping[str, Any], found: Verified) -> None:
    for key in ("metrics", "paired", "curves", "training", "arms", "problems"):
        if key not in stored:
            continue
        if isinstance(stored[key], list) and len(stored[key]) == len(made[key]):
            for number, (one, other) in enumerate(zip(stored[key], made[key], strict=True)):
                named = one.get("metric") or one.get("name") or one.get("arm")
                found.compare("results", f"results.json, {key}[{number}] ({named})", one, other)
        else:
            found.compare("results", f"results.json, {key}", stored[key], made[key])


def verify_evaluation(file: Path, found: Verified) -> None:
    stored = read_json(file)
    if "metrics" not in stored or "samples" not in stored:
        raise ConfigError("this file is no evaluation", where=str(file), hint="give the --out of stepalign evaluate")
    samples = Path(stored["samples"])
    samples = samples if samples.exists() else file.with_name(samples.name)
    key = settings_of(samples)
    if not samples.exists() or key is None:
        found.different.append(f"{samples.with_suffix('.json').name if samples.exists() else samples.name} is missing")
        return
    config = changed(Config(), {"evaluation": key["evaluation"], "data.test": key["problems"]}, str(file))
    keys = {"columns": key["columns"], "grader": key["grader"][0] or "", "grader_seconds": key["grader"][1]}
    config = changed(config, {f"data.{name}": value for name, value in keys.items()}, str(file))
    problems = read_samples(samples)
    found.compare("counts", f"{samples.name}, problems", stored.get("num_problems", len(problems)), len(problems))
    with make_grader(config.data) as grader:
        regrade(problems, grader, samples.name, found)
    section = config.evaluation
    made = metric_rows(metrics_of(problems, config.ks), level=section.confidence, resamples=section.bootstrap_samples)
    found.compare("evaluated numbers", f"{file.name}, number of metrics", len(stored["metrics"]), len(made))
    for one, other in zip(stored["metrics"], finite(made), strict=False):
        found.compare("evaluated numbers", f"{file.name}, {one.get('metric')}", one, other)


def verify_selection(folder: Path, found: Verified, num: int, listener: Listener) -> None:
    config = load_config(str(folder / "config.toml"))
    problems = {}
    for name in ("train.jsonl", "test.jsonl"):
        for row in read_json_lines(folder / name):
            problems[row.get("problem_id")] = row
    with make_grader(config.data) as grader:
        for row in read_json_lines(folder / "samples.jsonl"):
            known = problems.get(row["problem_id"])
            if known is None:
                continue
            verdicts = [g.verdict for g in grader.grade_many(row["texts"], [known["answer"]] * len(row["texts"]))]
            found.compare("grades", f"samples.jsonl, {row['problem_id']}", row["verdicts"], verdicts)
            average = verdicts.count("correct") / len(verdicts)
            measured = {k: v for k, v in (known.get("metadata") or known).items() if str(k).startswith("avg@")}
            for key, value in measured.items():
                found.compare("averages", f"{row['problem_id']}, {key}", value, average, 1e-12)


def verify_critiques(folder: Path, found: Verified, num: int, listener: Listener) -> None:
    rows = list(read_json_lines(folder / "critiques.jsonl"))
    if not (folder / "findings.json").exists():
        found.skipped.append("findings.json: the work is not finished")
        return
    stored = read_json(folder / "findings.json")
    numbers = {
        "critiques": len(rows),
        "usable": sum(row["status"] == "ok" for row in rows),
        "without_finding": sum(not row["findings"] for row in rows),
        "retries": sum(row["retries"] for row in rows),
    }
    for key, value in numbers.items():
        found.compare("counts", f"findings.json, {key}", stored[key], value)
    for finding in stored["findings"]:
        count = sum(finding["name"] in row["findings"] for row in rows)
        found.compare("counts", f"findings.json, {finding['name']}", finding["count"], count)


def verify_signal(folder: Path, found: Verified, num: int, listener: Listener) -> None:
    """A_t = teacher - student for every token; and the first rollouts scored again from the weights."""
    from stepalign.token_signal.files import read_rows
    from stepalign.token_signal.score import ScoringJob, score
    from stepalign.verbs.signal.folder import weights_of

    config = load_config(str(folder / "config.toml"))
    rows = list(read_rows(folder))
    _differences_of_rows(({**row, "contexts": [row]} for row in rows), "signal.jsonl", found)
    stored, source = read_json(folder / "signal.json"), read_json(folder / "source.json")
    if stored.get("prompts", {}).get("own"):
        found.skipped.append("tokens scored again: rows of the file bring prompts of their own, which are not stored")
        return
    with closing(open_session(config, listener)) as session:
        if stored.get("weights") and weights_of(config.model.path, session.solver) != stored["weights"]:
            found.different.append(f"signal.json: the weights at {config.model.path} are not those that were analysed")
            return
        for row in rows[:num]:
            problem = Problem(
                problem_id="", question=row["question"], answer=row["expected_answer"] or "", reference=row["reference"]
            )
            ids = tuple(row["token_ids"])
            teacher = session.prompts.self_teacher(
                problem,
                row["context_text"],
                introduction="" if "sha256" in source else find_design(row["context"]).introduction,
                completion_length=len(ids),
            )
            job = ScoringJob(
                completion_ids=ids,
                student_prompt_ids=session.prompts.student(problem),
                teacher_prompt_ids={"it": teacher.ids},
            )
            (scores,) = score(session.solver, [job], temperature=config.sampling.temperature)
            where = f"signal.jsonl, {row['rollout_id']}, {row['context']}"
            made = {
                "student_log_prob": scores.student.log_probs,
                "teacher_log_prob": scores.contexts["it"].teacher.log_probs,
                "log_ratio": scores.contexts["it"].log_ratio,
            }
            for key, values in made.items():
                found.compare("tokens scored again", f"{where}, {key}", row[key], values.tolist(), DIGITS_TOLERANCE)


def _differences_of_rows(rows: Iterator[dict[str, Any]] | list[dict[str, Any]], name: str, found: Verified) -> None:
    for row in rows:
        for one in row["contexts"]:
            student = one["student_log_prob"]
            made = [
                None if t is None or s is None else t - s for t, s in zip(one["teacher_log_prob"], student, strict=True)
            ]
            where = f"{name}, {row['rollout_id']}, {one.get('context', one.get('name'))}, log_ratio"
            found.compare("A_t as a difference", where, one["log_ratio"], made, 3e-6)
