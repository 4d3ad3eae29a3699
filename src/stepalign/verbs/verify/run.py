"""The numbers of a run once more: grades, metrics, contexts, evaluations, and tokens under the stored weights."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.build import Session, find_terms, find_truth, open_session, other_teacher
from stepalign.config import Config, changed, load_config
from stepalign.domains.table import load_sets
from stepalign.evaluation.evaluate import EvaluatedProblem, metric_rows, metrics_of, read_samples
from stepalign.events import Listener, progress
from stepalign.records import Critique, Problem, Rollout, Sample, critique_from_json, rollout_from_json, to_json
from stepalign.rollouts.early import JudgedGroup
from stepalign.storage.files import damaged_file, finite, read_json, step_of
from stepalign.storage.jsonl import read_json_lines
from stepalign.verbs.verify.verified import Verified

if TYPE_CHECKING:
    from stepalign.domains.math.grading import Grader
    from stepalign.models.load import Solver

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.25, "float16": 0.05}
"""Nats: a sampler's log-probability of a token, drawn one by one, against that of a whole scoring pass."""
MEAN_TOLERANCE = 1e-3
"""Nats a token, of means over a step; ten times as much in 16 bits."""


def verify_run(folder: Path, found: Verified, num: int, listener: Listener) -> None:
    config = load_config(str(folder / "config.toml"))
    local = changed(config, {"sampling.engine": "local", "sampling.base_urls": []}, "verify")
    sets = load_sets(config.data)
    problems = {p.problem_id: p for one in sets.values() for p in one.problems}
    with closing(open_session(local, listener)) as session:
        steps = _judged_steps(folder, session, problems, found)
        samples = _metrics(folder, config, session, steps, found)
        for file in sorted((folder / "samples").glob("step-*.jsonl")):
            listener(progress("evaluations", 0, 0, file.name))
            regrade(read_samples(file), session.grader, f"samples/{file.name}", found)
        _evaluations(folder, config, found)
        _weights(folder, session, steps, samples, num, found)
    _summary(folder, found)


Groups = list[JudgedGroup]


def _judged_steps(
    folder: Path, session: Session, problems: Mapping[str, Problem], found: Verified
) -> dict[int, Groups]:
    """The stored groups of every step, each rollout decoded and graded anew."""
    critiques: dict[str, Critique] = {
        row["rollout_id"]: critique_from_json(row) for row in read_json_lines(folder / "critiques.jsonl")
    }
    steps: dict[int, Groups] = {}
    maker = session.maker
    for step, rows in groupby(read_json_lines(folder / "rollouts.jsonl"), key=lambda row: row["record_step"]):
        groups: Groups = []
        for name, members in groupby(rows, key=lambda row: row["rollout_id"].rpartition("-")[0]):
            listed = list(members)
            problem = problems.get(listed[0]["problem_id"])
            if problem is None:
                found.skipped.append(f"{name}: the recipe's problems no longer have this one")
                continue
            rollouts = [rollout_from_json(row, problem) for row in listed]
            prompt = tuple(maker.environment.start(problem))
            written = [maker.written(prompt, one.completion) for one in rollouts]
            grades = session.grader.grade_many(written, [problem.answer] * len(written))
            for one, grade in zip(rollouts, grades, strict=True):
                where = f"rollouts.jsonl, step {step}, {one.rollout_id}"
                found.compare("texts", f"{where}, text", one.text, maker.text(one.completion))
                found.compare("grades", f"{where}, reward", one.reward, grade.score)
                found.compare("grades", f"{where}, answer", one.answer, grade.answer)
                found.compare("grades", f"{where}, verdict", one.verdict, grade.verdict)
            judged = [critiques.get(one.rollout_id) for one in rollouts]
            groups.append(JudgedGroup(problem=problem, prompt_ids=prompt, rollouts=rollouts, critiques=judged))
        steps[step] = groups
    return steps


def _metrics(
    folder: Path, config: Config, session: Session, steps: dict[int, Groups], found: Verified
) -> dict[int, list[Sample]]:
    """Every number of metrics.jsonl that follows from rollouts, critiques and contexts. Returns each step's samples."""
    from stepalign.rollouts.metrics import critique_numbers, rollout_numbers
    from stepalign.rollouts.samples import SampleMaker

    maker = SampleMaker(
        tokenizer=session.solver.tokenizer,
        prompts=session.prompts,
        condition=find_terms(config),
        objective=config.objective,
        skip_zero_std_groups=config.sampling.skip_zero_std_groups,
        truth=find_truth(config, session.solver),
    )
    contexts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_json_lines(folder / "contexts.jsonl"):
        contexts[row.pop("record_step")].append(row)
    samples: dict[int, list[Sample]] = {}
    totals = {"total_rollouts": 0.0, "total_tokens": 0.0}
    for row in read_json_lines(folder / "metrics.jsonl"):
        step, groups = row["step"], steps.get(row["step"], [])
        where = f"metrics.jsonl, step {step}"
        if not groups:
            found.different.append(f"{where}: no rollouts are stored for it")
            continue
        prepared = maker.make(groups, step - 1)
        samples[step] = prepared.samples
        numbers = rollout_numbers([group.rollouts for group in groups]) | prepared.numbers
        if config.critic.judged:
            numbers |= critique_numbers([one for group in groups for one in group.critiques if one is not None])
        totals["total_rollouts"] += numbers["num_rollouts"]
        totals["total_tokens"] += numbers["num_tokens"]
        numbers |= {"masked": float(sum(prepared.masked.values()))} | totals
        for key, value in finite(numbers).items():
            if key in row:
                found.compare("metrics", f"{where}, {key}", row[key], value, 1e-9)
        shown = [json.loads(json.dumps(to_json(one))) for one in prepared.contexts]
        for stored, made in zip(contexts.get(step, []), shown, strict=False):
            found.compare("contexts", f"contexts.jsonl, step {step}, {stored['rollout_id']}", stored, made)
        if len(contexts.get(step, [])) != len(shown):
            found.different.append(f"contexts.jsonl, step {step}: {len(contexts.get(step, []))} of {len(shown)} lines")
    return samples


def regrade(problems: Sequence[EvaluatedProblem], grader: Grader, name: str, found: Verified) -> None:
    """The verdicts and canonical answers of stored completions, graded anew."""
    from stepalign.domains.math.grading import canonical_answer

    for one in problems:
        if not one.answer:
            found.skipped.append(f"{name}, {one.problem_id}: no expected answer is stored")
            continue
        grades = grader.grade_many(list(one.texts), [one.answer] * len(one.texts))
        answers = [None if grade.answer is None else canonical_answer(grade.answer) for grade in grades]
        found.compare("grades", f"{name}, {one.problem_id}, verdicts", list(one.verdicts), [g.verdict for g in grades])
        found.compare("grades", f"{name}, {one.problem_id}, answers", list(one.answers), answers)


def _evaluations(folder: Path, config: Config, found: Verified) -> None:
    """Every metric of evaluations.jsonl with its interval, from the stored completions."""
    section = config.evaluation
    for row in read_json_lines(folder / "evaluations.jsonl"):
        file = folder / "samples" / f"step-{row['step']:05d}-{row['set']}.jsonl"
        problems = read_samples(file) if file.exists() else []
        if not problems:
            found.different.append(f"evaluations.jsonl, step {row['step']}, {row['set']}: {file.name} is missing")
            continue
        metrics = metric_rows(
            metrics_of(problems, config.ks), level=section.confidence, resamples=section.bootstrap_samples
        )
        for stored, made in zip(row["metrics"], finite(metrics), strict=False):
            where = f"evaluations.jsonl, step {row['step']}, {row['set']}, {stored.get('metric')}"
            found.compare("evaluated numbers", where, stored, made)


def _weights(
    folder: Path,
    session: Session,
    steps: dict[int, Groups],
    samples: dict[int, list[Sample]],
    num: int,
    found: Verified,
) -> None:
    """Rollouts under the weights that drew them, and the mean A_t of the step that they trained."""
    from stepalign.training import checkpoint as checkpoints

    config, solver = session.config, session.solver
    rollouts: dict[int, list[Rollout]] = defaultdict(list)
    for one in (one for groups in steps.values() for group in groups for one in group.rollouts):
        rollouts[one.completion.policy_version].append(one)
    prompts = {s.rollout_id: s.student_prompt_ids for of_step in samples.values() for s in of_step}
    rows = {row["step"]: row for row in read_json_lines(folder / "metrics.jsonl")}
    stored = {step_of(path): path for path in checkpoints.find_checkpoints(folder / "checkpoints")}
    first = checkpoints.trainable_weights(solver)
    kind = config.objective.teacher.weights
    for version in sorted(rollouts.keys() & ({0} | stored.keys())):
        weights, teacher = first, first
        if version:
            if name := damaged_file(stored[version]):
                found.different.append(f"checkpoints/{stored[version].name}/{name}: damaged")
                continue
            saved = checkpoints.Checkpoint(stored[version], {})
            weights = saved.weights
            teacher = {"initial": first, "live": weights}.get(kind) or saved.teacher
        checkpoints.restore_weights(solver, weights)
        _log_probs(session, rollouts[version][:num], prompts, version, found)
        of_step = [s for s in samples.get(version + 1, []) if s.teacher_prompt_ids is not None]
        row = rows.get(version + 1, {})
        on_policy = {one.completion.policy_version for group in steps.get(version + 1, []) for one in group.rollouts}
        if (
            not of_step
            or row.get("log_ratio") is None
            or config.training.updates_per_batch > 1
            or on_policy != {version}
        ):
            continue
        if config.objective.teacher.base_urls:
            found.skipped.append(f"mean A_t of step {version + 1}: the teacher is behind servers")
            continue
        if len(of_step) > 4 * num:
            found.skipped.append(f"mean A_t of step {version + 1}: {len(of_step)} samples, more than 4 x --num")
            continue
        student = _scores(session, [(s.student_prompt_ids, s.completion_ids) for s in of_step])
        checkpoints.restore_weights(solver, {name: teacher[name] for name in weights})
        taught = other_teacher(config, solver) or solver
        shown = _scores(session, [(s.teacher_prompt_ids or (), s.completion_ids) for s in of_step], taught)
        pairs = zip(shown, student, of_step, strict=True)
        ratios = [float(t - s) for a, b, one in pairs for t, s, kept in zip(a, b, one.loss_mask, strict=True) if kept]
        where = f"metrics.jsonl, step {version + 1}, log_ratio (mean A_t of {len(ratios)} tokens)"
        found.compare("mean A_t", where, row["log_ratio"], sum(ratios) / len(ratios), _loose(session, MEAN_TOLERANCE))
        found.checked["A_t"] += len(ratios)
    missing = sorted(rollouts.keys() - {0} - stored.keys())
    if missing:
        found.skipped.append(f"tokens drawn by {len(missing)} states of the weights that are no longer stored")


def _log_probs(
    session: Session, rollouts: Sequence[Rollout], prompts: Mapping[str, tuple[int, ...]], version: int, found: Verified
) -> None:
    from stepalign.models.load import dtype_of

    known = [one for one in rollouts if one.rollout_id in prompts]
    pairs = [(prompts[one.rollout_id], one.completion.ids) for one in known]
    for one, log_probs in zip(known, _scores(session, pairs), strict=True):
        both = zip(one.completion.log_probs, log_probs, one.completion.sampled_mask, strict=True)
        gaps = [abs(a - float(b)) for a, b, sampled in both if sampled]
        where = f"rollouts.jsonl, {one.rollout_id}, log-probabilities under the weights of step {version}, largest gap"
        found.compare("rollouts scored again", where, 0.0, max(gaps, default=0.0), TOLERANCE[dtype_of(session.solver)])


def _scores(
    session: Session, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], solver: Solver | None = None
) -> list[Any]:
    """log p of every completion token behind a prompt, by the session's solver or another."""
    from stepalign.token_signal.score import ScoringJob, score

    jobs = [ScoringJob(completion_ids=ids, student_prompt_ids=prompt, teacher_prompt_ids={}) for prompt, ids in pairs]
    found = score(solver or session.solver, jobs, temperature=session.config.sampling.temperature)
    return [one.student.log_probs for one in found]


def _loose(session: Session, tolerance: float) -> float:
    return tolerance if session.solver.model.dtype.itemsize == 4 else 10 * tolerance


def _summary(folder: Path, found: Verified) -> None:
    if not (folder / "summary.json").exists():
        return
    *_, last = {}, *read_json_lines(folder / "metrics.jsonl")
    summary = read_json(folder / "summary.json")
    for key, column in (("steps", "step"), ("rollouts", "total_rollouts"), ("completion_tokens", "total_tokens")):
        if key in summary and last:
            found.compare("totals", f"summary.json, {key}", float(summary[key]), float(last[column]))
