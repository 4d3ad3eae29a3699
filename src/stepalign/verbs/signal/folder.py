"""The folder that ``stepalign signal`` writes: append-only, resumable, with memory that does not grow.

Attempts are scored in shards of a few thousand tokens. A shard's arrays are written first and its lines of signal.jsonl
after them, in one piece; so a shard whose lines are there is complete. The cut into shards depends on the attempts
alone, and a process that was killed continues with the shard it died in, to the same bytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepalign.build import has_teacher
from stepalign.config import Config
from stepalign.critics import RUN_FILES
from stepalign.domains.domain import Truth
from stepalign.errors import ConfigError, LockedError
from stepalign.events import Listener, progress, silent, warning
from stepalign.models.load import Solver
from stepalign.models.places import weight_files
from stepalign.models.prompts import PromptBuilder
from stepalign.outside import difference_shown, redact_url
from stepalign.report.page import write_token_page
from stepalign.storage import jsonl
from stepalign.storage.files import finite, write_atomically, write_json
from stepalign.storage.fingerprint import sha256, sha256_of_file
from stepalign.storage.run_folder import RunFolder
from stepalign.token_signal.analyse import Analysed, AttemptInContexts, analyse_attempts
from stepalign.token_signal.files import PAGE_DATA, RECORDS, read_completions
from stepalign.token_signal.score import ContextScores, windows
from stepalign.token_signal.summary import header, summarise
from stepalign.token_signal.table import to_rows

SHARD_TOKENS = 8192
"""Completion tokens of a shard, unless one completion alone is longer. A killed process loses at most as many."""
ARRAYS = "arrays"
SOURCE = "source.json"


def write_signal_folder(
    out: Path,
    config: Config,
    solver: Solver,
    prompts: PromptBuilder,
    attempts: Iterable[AttemptInContexts],
    *,
    source: Mapping[str, Any],
    labels: Mapping[str, str],
    prompts_from: str,
    truth: Truth | None = None,
    total: int = 0,
    listener: Listener = silent,
) -> Path:
    """Score attempts into a folder, or go on with it, and write its page. Layout: docs/formats.md.

    Args:
        attempts: taken one after the other; the same ones whenever an analysis goes on.
        source: what is analysed, JSON-ready; an analysis of something else is refused.
        labels: contexts by name, in the order of the page.
        prompts_from: where the prompts come from, for the reader.
        total: attempts at most, for the progress that ``listener`` receives.

    Raises:
        ConfigError: no context has anything to say, or a label does not fit its attempt.
        LockedError: the folder is in use, or holds another analysis.
    """
    temperature = config.sampling.temperature
    with RunFolder(out, config, resume=True, kind="analysis", extra=RUN_FILES) as folder:
        _check_source(out, source)
        first: AttemptInContexts | None = None
        done = kept = own_prompts = 0
        is_over = False  # whether the lines of an earlier process are used up
        for number, shard in enumerate(windows(attempts, lambda subject: len(subject.ids), SHARD_TOKENS)):
            first = first or shard[0]
            arrays = out / ARRAYS / f"{number:06d}.safetensors"
            stored = 0 if is_over or not arrays.exists() else _stored_bytes(out / RECORDS, kept, shard)
            kept += stored
            if not stored and not is_over:
                jsonl.cut(out / RECORDS, kept)
                is_over = True
            if not stored:
                scored = analyse_attempts(
                    solver,
                    prompts,
                    shard,
                    temperature=temperature,
                    top_k=config.signal.top_k,
                    truth=truth,
                    max_micro_batch_tokens=config.training.max_micro_batch_tokens,
                )
                analysed = list(scored)
                write_json(out / SOURCE, source)
                _write_arrays(arrays, analysed, list(labels))
                folder.append("signal", (row for one in analysed for row in to_rows(one.scored)))
            done += len(shard)
            own_prompts += sum(one.prompts is not None for one in shard)
            listener(progress("scoring", done, total))
        if first is None:
            raise ConfigError(
                "no context has anything to say about any rollout",
                where=str(source.get("name", out)),
                hint="give other contexts, or rollouts with critiques or reference solutions",
            )
        if not is_over:
            jsonl.cut(out / RECORDS, kept)  # lines of attempts that are no longer there
        head = header(
            config.model.path,
            temperature,
            prompts={**_prompts_used(config, prompts, solver, first, prompts_from), "own": own_prompts},
            source={key: source[key] for key in ("name", "sha256") if key in source},
            weights=weights_of(config.model.path, solver),
            **another_teacher(config, listener),
        )
        signal = finite(summarise(lambda: read_completions(out), head, labels, num_shown=config.signal.num_shown))
        write_json(out / PAGE_DATA, signal, indent=None)
        return write_token_page(signal, out / "index.html")


def another_teacher(config: Config, listener: Listener) -> dict[str, str]:
    """For the head of signal.json, and as a warning: the model that training asks in the self-teacher's place. A signal
    asks the solver itself, whose A is another one."""
    section = config.objective.teacher
    if not (section.is_other and has_teacher(config)):
        return {}
    name = section.model or ", ".join(map(redact_url, section.base_urls))
    listener(warning(f"A is the solver's own; training asks another teacher, {name}, whose A is not shown"))
    return {"other_teacher": name}


def weights_of(path: str, solver: Solver) -> str | None:
    """The fingerprint of the weights: SHA-256 of their files, or the revision on the Hub."""
    digests = [sha256_of_file(file) for file in weight_files(path)]
    if not digests:
        return getattr(solver.model.config, "_commit_hash", None)
    return digests[0] if len(digests) == 1 else sha256("".join(digests))


def _check_source(out: Path, source: Mapping[str, Any]) -> None:
    path = out / SOURCE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else source
    for key in source:
        if before.get(key) != source[key]:
            raise LockedError(
                f"the folder holds an analysis of something else: {key} is "
                + difference_shown(before.get(key), source[key]),
                where=str(out),
                hint="give another --out",
            )


def _prompts_used(
    config: Config, prompts: PromptBuilder, solver: Solver, first: AttemptInContexts, prompts_from: str
) -> dict[str, Any]:
    """The prompts of both sides, with those of the first attempt as they went in."""
    own, problem = first.prompts or prompts, first.attempt.problem
    name, shown = next(iter(first.contexts.items()))
    teacher = own.self_teacher(problem, shown.text, introduction=shown.introduction, completion_length=len(first.ids))
    keys = ("student", "self_teacher", "system", "student_chat_options", "teacher_chat_options")
    return {
        "from": prompts_from,
        **{key: getattr(config.prompts, key) for key in keys},
        "example": {
            "rollout_id": first.attempt.rollout_id,
            "context": name,
            "student": solver.tokenizer.decode(list(own.student(problem))),
            "self_teacher": solver.tokenizer.decode(list(teacher.ids)),
        },
    }


def _stored_bytes(path: Path, start: int, shard: Sequence[AttemptInContexts]) -> int:
    """Bytes of the lines from a position on, where they are those of this shard; else 0."""
    size = 0
    lines = jsonl.whole_lines(path, start)
    for subject in shard:
        for name in subject.contexts:
            line = next(lines, b"{}")
            row = json.loads(line)
            if (row.get("rollout_id"), row.get("context")) != (subject.attempt.rollout_id, name):
                return 0
            size += len(line)
    return size


def _write_arrays(path: Path, analysed: Sequence[Analysed], names: Sequence[str]) -> None:
    """The arrays of a shard: all its tokens in a row, float32. NaN where a context has nothing for a rollout."""
    from safetensors.numpy import save

    lengths = [len(one.subject.ids) for one in analysed]
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for one in analysed:
        student = one.scores.student
        columns["token_ids"].append(np.array(one.subject.ids))
        columns["step"].append(one.scored.step)
        columns["student/log_prob"].append(student.log_probs)
        columns["student/entropy"].append(student.entropy)
        columns["student/top_ids"].append(student.top_ids)
        columns["student/top_log_probs"].append(student.top_log_probs)
        for name in names:
            for key, values in _context_arrays(one.scores.contexts.get(name), *student.top_ids.shape).items():
                columns[f"{name}/{key}"].append(values)
    integers = ("token_ids", "step", "top_ids")
    arrays: dict[str, np.ndarray] = {
        name: np.ascontiguousarray(np.concatenate(parts), dtype=np.int32 if name.endswith(integers) else np.float32)
        for name, parts in columns.items()
    }
    arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = [one.subject.attempt.rollout_id for one in analysed]
    write_atomically(path, save(arrays, metadata={"rollout_ids": json.dumps(ids)}))


def _context_arrays(found: ContextScores | None, length: int, kept: int) -> dict[str, np.ndarray]:
    undefined = np.full(length, np.nan)
    return {
        "log_ratio": found.log_ratio if found else undefined,
        "forward_kl": found.forward_kl if found else undefined,
        "teacher_log_prob": found.teacher.log_probs if found else undefined,
        "teacher_entropy": found.teacher.entropy if found else undefined,
        "top_ids": found.teacher.top_ids if found else np.full((length, kept), -1),
        "top_log_probs": found.teacher.top_log_probs if found else np.full((length, kept), np.nan),
    }
