"""``stepalign select``: measure the solver and the critic on every problem, and freeze those inside the band.

Everything measured is appended as it comes, and is not measured again. A chunk of problems is written when all its
completions are there: one by one, short ones would survive interruptions more often than long ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stepalign.build import Session, check_critic, make_critic, open_session, prompt_templates
from stepalign.config import Config, changed
from stepalign.critics import RUN_FILES
from stepalign.domains.math.grading import Grader
from stepalign.domains.math.thinking import assume_thought
from stepalign.domains.table import load_set, make_grader
from stepalign.errors import ConfigError
from stepalign.events import Listener, progress, warning
from stepalign.feedback.critique import CUT
from stepalign.feedback.steps import split_steps
from stepalign.models.places import find_model, weight_files
from stepalign.problems.loading import save_problems
from stepalign.problems.selection import Evidence, Passage, SolverAttempts, funnel_rows, gates_of, pass_gates
from stepalign.problems.sets import find_overlaps, split_problems
from stepalign.records import Attempt, Problem, Rollout
from stepalign.rollouts.order import derive_seed
from stepalign.storage.files import write_json
from stepalign.storage.fingerprint import sha256_of_file
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.verbs.checks import refuse_long_questions
from stepalign.verbs.inputs import Inputs
from stepalign.waiting import wait_for

CHUNK = 32
"""Problems whose completions are drawn and written together."""
WIDEN = "what was measured is kept: widen a gate, such as --set selection.average_below=0.5, and go on with --resume"


def select(config: Config, out: Path, *, resume: bool, listener: Listener) -> dict[str, Any]:
    """Pass the problems of ``data.train`` through the gates of ``selection``; see docs/formats.md for what OUT holds.

    Returns:
        The manifest, with the rows of the funnel under "funnel".

    Raises:
        ConfigError, EndpointError, LockedError: see the session and the run folder; also when no problem is left.
    """
    config = as_before(config, out)
    found = load_set(config.data.model_copy(update={"validation_share": 0.0}), "train")  # nothing is set aside here
    found.say_skipped(listener)
    find_model(config.model.path)
    prompt_templates(config)
    RunFolder.check(out, config, resume=resume, kind="selection", extra=RUN_FILES)
    if gates_of(config.selection, "critic"):
        check_critic(config, ["step_aligned"])
    if gates_of(config.selection, "solver"):
        refuse_long_questions(Inputs(config), "train", found.problems)
    kept, passages = [Evidence(problem=problem) for problem in found.problems], []
    with RunFolder(out, config, resume=resume, kind="selection", extra=RUN_FILES) as folder:
        for source in ("problem", "solver", "critic"):
            gates = gates_of(config.selection, source)
            problems = [one.problem for one in kept]
            if gates and source == "solver":
                with closing(open_session(config, listener)) as session:
                    attempts = _sample_all(session, problems, folder, listener)
                kept = [replace(one, attempts=attempts[one.problem.problem_id]) for one in kept]
            elif gates and source == "critic":
                verdicts = _ask_all(config, problems, folder, listener)
                kept = [replace(one, critic_verdict=verdicts.get(one.problem.problem_id)) for one in kept]
            kept, more = pass_gates(kept, gates, config.selection)
            passages += more
        num_rows = found.num_rows or len(found.problems) + sum(found.skipped.values())
        return _freeze(config, out, kept, num_rows, dict(found.skipped), passages)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def _sample_all(session: Session, problems: Sequence[Problem], folder: RunFolder, listener: Listener) -> dict[str, Any]:
    """The solver's attempts at every problem, by id; those on disk are taken from there."""
    config = session.config
    rows = read_json_lines(folder.path / "samples.jsonl")
    stored = {row["problem_id"]: SolverAttempts(**row) for row in rows}
    missing = [problem for problem in problems if problem.problem_id not in stored]
    done = len(problems) - len(missing)
    listener(progress("sampling", done, len(problems)))
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        drawn = wait_for(
            session.maker.attempt(
                chunk,
                num_samples=config.selection.num_samples,
                temperature=config.sampling.temperature,
                max_tokens=config.sampling.max_completion_length,
                seed=derive_seed(config.selection.seed, "selection", chunk[0].problem_id),
            )
        )
        new = [_measured(rollouts, config.selection.form) for rollouts in drawn]
        folder.append("samples", [asdict(attempts) for attempts in new])
        stored |= {attempts.problem_id: attempts for attempts in new}
        done += len(chunk)
        listener(progress("sampling", done, len(problems)))
    return stored


def _measured(rollouts: Sequence[Rollout], form: str) -> SolverAttempts:
    return SolverAttempts(
        problem_id=rollouts[0].problem_id,
        verdicts=tuple(rollout.verdict for rollout in rollouts),
        formatted=tuple(
            not rollout.attempt.truncated
            and rollout.answer is not None
            and (form == "answer" or _has_steps(rollout.text))
            for rollout in rollouts
        ),
        texts=tuple(rollout.text for rollout in rollouts),
        lengths=tuple(len(rollout.completion.ids) for rollout in rollouts),
    )


def _has_steps(text: str) -> bool:
    """Whether a text is cut into steps tagged 1, 2, 3, ... without gaps."""
    labels = [step.label for step in split_steps(text, "tags") if step.label.isdigit()]
    return bool(labels) and labels == [str(number) for number in range(1, len(labels) + 1)]


def _ask_all(config: Config, problems: Sequence[Problem], folder: RunFolder, listener: Listener) -> dict[str, Any]:
    """The verdict on the critic's own solution of every problem, by id. Without one: it did not answer."""
    file = folder.path / "critic-solutions.jsonl"
    verdicts = {row["problem_id"]: row["verdict"] for row in read_json_lines(file)}
    missing = [problem for problem in problems if problem.problem_id not in verdicts]
    listener(progress("asking the critic", len(problems) - len(missing), len(problems)))
    if not missing:
        return verdicts
    # It is shown what the solver is shown: the question, and the form of an answer.
    alone = {"critic.sees": "nothing", "critic.structured": False, "prompts.critic": config.prompts.student}
    alone |= {"critic.writes": "trace", "critic.second.kind": "", "critic.remembers": 0}
    critic = make_critic(changed(config, alone, "selection"), folder.path, ["step_aligned"], listener, strict=False)
    assert critic is not None

    async def grade_solutions(grader: Grader) -> None:
        # It limits by itself how many requests are under way; an empty attempt asks it to solve the problem.
        asked = [Attempt(rollout_id=f"selection-{one.problem_id}", problem=one, text="") for one in missing]
        tasks = [asyncio.create_task(critic.critique(attempt)) for attempt in asked]
        for problem, task in zip(missing, tasks, strict=True):
            critique = await task
            if critique.status == "failed":
                continue
            text = critique.raw or critique.text
            if critique.reason == CUT:  # perhaps within a thought that the server's template opened
                text = assume_thought(text)
            grade = grader.grade(text, problem.answer)
            verdicts[problem.problem_id] = grade.verdict
            row = {"problem_id": problem.problem_id, "verdict": grade.verdict, "answer": grade.answer}
            folder.append("critic-solutions", [{**row, "reason": grade.reason, "text": text}])
            listener(progress("asking the critic", len(verdicts), len(problems)))

    with closing(critic), make_grader(config.data) as grader:
        wait_for(grade_solutions(grader))
    if failed := len(problems) - len(verdicts):
        listener(warning(f"the critic did not answer for {failed} problems; the same command asks for them again"))
    return verdicts


# ---------------------------------------------------------------------------------------------------------------------
# Freezing


def _freeze(
    config: Config, out: Path, kept: Sequence[Evidence], num_rows: int, skipped: dict[str, int], passages: list[Passage]
) -> dict[str, Any]:
    """Write the selected problems and say where they come from."""
    share = config.selection.test_share
    splits = split_problems([_with_numbers(one) for one in kept], {"train": 1 - share, "test": share})
    splits, apart = _without_overlaps(splits)
    funnel = funnel_rows(num_rows, skipped, [*passages, *apart])
    write_json(out / "funnel.json", {"funnel": funnel})
    if not splits["train"]:
        rows = "; ".join(f"{row['label']}: {row['kept']} of {row['before']} left" for row in funnel)
        raise ConfigError(f"no problem is left to train on ({rows})", where=str(out), hint=WIDEN)
    files = {}
    for name, problems in splits.items():
        if problems:
            file = f"{name}.jsonl"
            files[name] = {"file": file, "problems": len(problems), "sha256": save_problems(problems, out / file)}
    model, source = config.model.path, config.data.train
    checksum = sha256_of_file(source) if Path(source).is_file() else None
    manifest = {
        "format": 1,
        "files": files,
        "source": {"name": source, "columns": config.data.columns, "sha256": checksum},
        "selection": config.selection.model_dump(mode="json"),
        "solver": {
            "path": model,
            # A Hub name is its own identity.
            "weights": {file.name: sha256_of_file(file) for file in weight_files(model)},
            "temperature": config.sampling.temperature,
            "max_completion_length": config.sampling.max_completion_length,
        },
        "critic": config.critic.model_dump(include={"kind", "model"}) if config.selection.critic_solves else None,
        "funnel": funnel,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _with_numbers(one: Evidence) -> Problem:
    """The problem with what was measured among its metadata."""
    if not one.attempts.verdicts:
        return one.problem
    measured = {f"avg@{len(one.attempts.verdicts)}": one.attempts.average}
    measured["formatting_rate"] = one.attempts.formatting_rate
    return replace(one.problem, metadata={**one.problem.metadata, **measured})


def _without_overlaps(splits: dict[str, tuple[Problem, ...]]) -> tuple[dict[str, tuple[Problem, ...]], list[Passage]]:
    """Training problems that the test set holds in nearly the same words leave the training set."""
    twins = {overlap.first_id for overlap in find_overlaps(splits)}  # "train" comes first
    if not twins:
        return splits, []
    passage = Passage(
        name="distinct",
        label="not in the test set in nearly the same words",
        before=sum(map(len, splits.values())),
        fell=len(twins),
        fallen=sorted(twins),
    )
    return {**splits, "train": tuple(p for p in splits["train"] if p.problem_id not in twins)}, [passage]
