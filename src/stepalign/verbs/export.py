"""``stepalign export``: attempts with what their self-teacher is shown, in the columns that other trainers read.

One row for each attempt that has a context: of a run, the context of its condition; of a folder of ``critique``, the
usable critiques. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepalign.build import prompt_templates
from stepalign.config import Config, load_config
from stepalign.domains.table import load_set
from stepalign.errors import ConfigError
from stepalign.feedback import designs
from stepalign.records import Attempt
from stepalign.storage.files import finite, read_json, write_atomically
from stepalign.storage.jsonl import read_json_lines, to_json_line
from stepalign.storage.sums import check_sums
from stepalign.verbs.attempts import read_attempts, read_rollouts

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedAttempt:
    """An attempt and the context that its self-teacher is shown."""

    attempt: Attempt
    ids: tuple[int, ...]
    """Of the completion; empty where they are not stored."""
    design: str
    text: str
    prompt: list[Row]
    """Chat messages of the student."""
    teacher_prompt: list[Row]
    """Chat messages of the self-teacher."""


def export(folder: Path, to: str, out: Path) -> int:
    """Write the contexts of a run, or of a folder of critiques, for another trainer; returns the number of rows.

    Args:
        to: a name of ``TARGETS``.
        out: ``.jsonl`` or ``.parquet``.

    Raises:
        ConfigError: an unknown target or suffix, a folder without contexts, attempts that have changed since.
    """
    if to not in TARGETS:
        raise ConfigError(f"unknown target {to}", where="--to", hint=f"one of {', '.join(TARGETS)}, hub")
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError("the file must end in .jsonl or .parquet", where=str(out), hint=f"--out {out.stem}.jsonl")
    if not (folder / "config.toml").exists():
        what = "this is no run and no folder of critiques: config.toml is missing"
        raise ConfigError(what, where=str(folder), hint="give the --out of train or critique")
    check_sums(folder, "config.toml", "source.json", "rollouts.jsonl", "contexts.jsonl", "critiques.jsonl")
    config = load_config(str(folder / "config.toml"))
    shown = (_of_critiques if (folder / "source.json").exists() else _of_run)(folder, config)
    rows = [finite(TARGETS[to](one, number)) for number, one in enumerate(shown)]
    if not rows:
        raise ConfigError(
            "no attempt has a context",
            where=str(folder),
            hint="a condition without a self-teacher shows none: stepalign critique RUN asks a critic",
        )
    write_atomically(
        out, _parquet(rows) if out.suffix == ".parquet" else "".join(to_json_line(row) + "\n" for row in rows)
    )
    return len(rows)


def _of_run(folder: Path, config: Config) -> Iterator[ExportedAttempt]:
    problems = {problem.problem_id: problem for problem in load_set(config.data, "train").problems}
    contexts = {row["rollout_id"]: row for row in read_json_lines(folder / "contexts.jsonl") if row["text"] is not None}
    for rollout in read_rollouts(folder / "rollouts.jsonl", problems):
        if context := contexts.get(rollout.rollout_id):
            ids = rollout.completion.ids
            yield _shown(config, rollout.attempt, ids, context["design"], context["text"], context["introduction"])


def _of_critiques(folder: Path, config: Config) -> Iterator[ExportedAttempt]:
    source = read_json(folder / "source.json")
    attempts = read_attempts(Path(source["source"]))
    if attempts.sha256 != source["sha256"]:
        raise ConfigError("the attempts have changed since they were criticised", where=source["source"])
    by_id = {attempt.rollout_id: attempt for attempt in attempts.attempts}
    of_form = {design.form: (name, design) for name, design in reversed(designs.DESIGNS.items()) if design.needs_critic}
    for row in read_json_lines(folder / "critiques.jsonl"):
        if row["status"] == "ok" and row["policy"] in ("", "use"):
            name, design = of_form[row["form"]]
            yield _shown(
                attempts.config or config, by_id[row["rollout_id"]], (), name, row["text"], design.introduction
            )


def _shown(
    config: Config, attempt: Attempt, ids: tuple[int, ...], design: str, text: str, introduction: str
) -> ExportedAttempt:
    student, self_teacher = prompt_templates(config)
    question = attempt.problem.question
    teacher = self_teacher.messages(question=question, feedback=text, introduction=introduction)
    system = [{"role": "system", "content": config.prompts.system}] if config.prompts.system else []
    return ExportedAttempt(
        attempt=attempt,
        ids=ids,
        design=design,
        text=text,
        prompt=[*system, {"role": "user", "content": student.render(question=question)}],
        teacher_prompt=teacher if teacher[0]["role"] == "system" else [*system, *teacher],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Targets


def _trl(one: ExportedAttempt, number: int) -> Row:
    """SDPO and SDFT of TRL, which put ``privileged_context`` into a template of their own."""
    return {"prompt": one.prompt, "privileged_context": one.text, **_known(one)}


def _verl(one: ExportedAttempt, number: int) -> Row:
    problem = one.attempt.problem
    more = {"split": "train", "index": number, "question": problem.question, "answer": problem.answer}
    return {
        "data_source": "stepalign",
        "prompt": one.prompt,
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {
            **more,
            "privileged_context": one.text,
            "teacher_prompt": one.teacher_prompt,
            "design": one.design,
        },
    }


def _swift(one: ExportedAttempt, number: int) -> Row:
    """OPSD of ms-swift, where ``teacher_prompt`` takes the place of the last user message."""
    return {"messages": one.prompt, "teacher_prompt": one.teacher_prompt[-1]["content"], **_known(one)}


def _jsonl(one: ExportedAttempt, number: int) -> Row:
    """A plain file, as ``stepalign signal FILE`` and ``critique`` read it, with both prompts as messages."""
    attempt = one.attempt
    return {
        "id": attempt.rollout_id,
        "question": attempt.problem.question,
        "completion": attempt.text,
        **({"completion_ids": list(one.ids)} if one.ids else {}),
        "answer": attempt.problem.answer,
        "reference": attempt.problem.reference,
        "verdict": attempt.verdict,
        "contexts": {one.design: one.text},
        "messages": one.prompt,
        "teacher_messages": one.teacher_prompt,
    }


def _known(one: ExportedAttempt) -> Row:
    """Columns for reward functions, and the place that a row comes from."""
    return {"solution": one.attempt.problem.answer, "rollout_id": one.attempt.rollout_id, "design": one.design}


TARGETS: Mapping[str, Callable[[ExportedAttempt, int], Row]] = {
    "trl": _trl,
    "verl": _verl,
    "swift": _swift,
    "jsonl": _jsonl,
}


def _parquet(rows: list[Row]) -> bytes:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "Parquet needs an extra", where="--out", hint='pip install "stepalign[data]", or --out FILE.jsonl'
        ) from None
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()
