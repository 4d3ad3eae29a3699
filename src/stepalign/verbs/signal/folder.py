"""The folder that ``stepalign signal`` writes: append-only, resumable, with memory that does not grow.

Attempts are scored in shards of a few thousand tokens. A shard's arrays are written first and its lines of signal.jsonl
after them, in one piece; so a shard whose lines are there is complete. The cut into shards depends on the attempts
alone, and a process that was killed continues with the shard it died in, to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepalign.config import Config
from stepalign.critics import RUN_FILES
from stepalign.errors import ConfigError, LockedError
from stepalign.events import Listener, progress, silent
from stepalign.models.load import Solver, find_model
from stepalign.models.prompts import PromptBuilder
from stepalign.report.page import write_token_page
from stepalign.signal.analyse import Analysed, AttemptInContexts, analyse_attempts
from stepalign.signal.marks import WrongResult
from stepalign.signal.summary import header, summarise
from stepalign.signal.table import to_rows
from stepalign.storage import jsonl
from stepalign.storage.files import finite, write_atomically, write_json
from stepalign.storage.fingerprint import sha256, sha256_of_file
from stepalign.storage.run_folder import RunFolder
from stepalign.storage.signal_file import PAGE_DATA, RECORDS, read_completions

SHARD_TOKENS = 8192
"""Completion tokens of a shard, unless one completion alone is longer. What a killed process loses at most."""
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
    wrong_result: WrongResult | None = None,
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
    with RunFolder(out, config, resume=True, kind="analysis", extra=RUN_FILES) as folder:
        _check_source(out, source)
        first: AttemptInContexts | None = None
        done = 0
        stored = _Stored(out)
        for number, shard in enumerate(_shards(attempts)):
            first = first or shard[0]
            if not stored.holds(shard, number):
                stored.cut()
                analysed = list(
                    analyse_attempts(
                        solver,
                        prompts,
                        shard,
                        temperature=config.sampling.temperature,
                        top_k=config.signal.top_k,
                        wrong_result=wrong_result,
                        max_micro_batch_tokens=config.training.max_micro_batch_tokens,
                    )
                )
                if not (out / SOURCE).exists():
                    write_json(out / SOURCE, source)
                _write_arrays(out / ARRAYS / f"{number:06d}.safetensors", analysed, list(labels))
                folder.append("signal", (row for one in analysed for row in to_rows(one.scored)))
            done += len(shard)
            listener(progress("scoring", done, total))
        if first is None:
            raise ConfigError(
                "no context has anything to say about any rollout",
                where=str(source.get("name", out)),
                hint="give other contexts, or rollouts with critiques or reference solutions",
            )
        stored.cut()  # lines of attempts that are no longer there
        head = header(
            config.model.path,
            config.sampling.temperature,
            prompts=_prompts_used(config, prompts, solver, first, prompts_from),
            source={key: source[key] for key in ("name", "sha256") if key in source},
            weights=weights_of(config.model.path, solver),
        )
        signal = finite(summarise(lambda: read_completions(out), head, labels, num_shown=config.signal.num_shown))
        write_json(out / PAGE_DATA, signal, indent=None)
        return write_token_page(signal, out / "index.html")


def weights_of(path: str, solver: Solver) -> str | None:
    """What tells these weights from others: SHA-256 of the safetensors files, or the revision on the Hub."""
    folder = Path(find_model(path))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return getattr(solver.model.config, "_commit_hash", None)
    digests = [sha256_of_file(weights) for weights in files]
    return digests[0] if len(digests) == 1 else sha256("".join(digests))


def _check_source(out: Path, source: Mapping[str, Any]) -> None:
    path = out / SOURCE
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in source if before.get(key) != source[key]]
    if changed:
        key = changed[0]
        raise LockedError(
            f"the folder holds an analysis of something else: {key} is {before.get(key)!r} there, {source[key]!r} here",
            where=str(out),
            hint="give another --out",
        )


def _prompts_used(
    config: Config, prompts: PromptBuilder, solver: Solver, first: AttemptInContexts, prompts_from: str
) -> dict[str, Any]:
    """What both sides read, with the prompts of the first attempt as they went in."""
    own = first.prompts or prompts
    name, shown = next(iter(first.contexts.items()))
    teacher = own.self_teacher(first.attempt.problem, shown.text, introduction=shown.introduction)
    section = config.prompts
    return {
        "from": prompts_from,
        "student": section.student,
        "self_teacher": section.self_teacher,
        "system": section.system,
        "student_chat_options": section.student_chat_options,
        "teacher_chat_options": section.teacher_chat_options,
        "example": {
            "rollout_id": first.attempt.rollout_id,
            "context": name,
            "student": solver.tokenizer.decode(list(own.student(first.attempt.problem))),
            "self_teacher": solver.tokenizer.decode(list(teacher.ids)),
        },
    }


def _shards(subjects: Iterable[AttemptInContexts]) -> Iterator[list[AttemptInContexts]]:
    shard: list[AttemptInContexts] = []
    held = 0
    for subject in subjects:
        tokens = len(subject.ids)
        if shard and held + tokens > SHARD_TOKENS:
            yield shard
            shard, held = [], 0
        shard.append(subject)
        held += tokens
    if shard:
        yield shard


class _Stored:
    """The lines that are there already, walked along with the shards."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out / RECORDS
        self._kept = 0
        """Bytes of the complete shards so far."""
        self._is_over = not self._path.exists()

    def holds(self, shard: Sequence[AttemptInContexts], number: int) -> bool:
        """Whether the next lines are those of this shard, and its arrays are there."""
        if self._is_over:
            return False
        wanted = [(subject.attempt.rollout_id, name) for subject in shard for name in subject.contexts]
        end = self._kept
        lines = jsonl.whole_lines(self._path, self._kept)
        for key in wanted:
            line = next(lines, b"{}")
            row = json.loads(line)
            if (row.get("rollout_id"), row.get("context")) != key:
                return False
            end += len(line)
        if not (self._out / ARRAYS / f"{number:06d}.safetensors").exists():
            return False
        self._kept = end
        return True

    def cut(self) -> None:
        """Nothing after the complete shards counts: a process died while it wrote there."""
        if not self._is_over:
            jsonl.cut(self._path, self._kept)
            self._is_over = True


def _write_arrays(path: Path, analysed: Sequence[Analysed], names: Sequence[str]) -> None:
    """The arrays of a shard: all its tokens in a row, float32. NaN where a context has nothing for a rollout."""
    from safetensors.numpy import save

    lengths = [len(one.subject.ids) for one in analysed]

    def flat(values: Iterable[Any], dtype: Any) -> np.ndarray:
        return np.ascontiguousarray(np.concatenate([np.asarray(v) for v in values]).astype(dtype))

    students = [one.scores.student for one in analysed]
    arrays = {
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "token_ids": flat((one.subject.ids for one in analysed), np.int32),
        "step": flat((one.scored.step for one in analysed), np.int32),
        "student/log_prob": flat((s.log_probs for s in students), np.float32),
        "student/entropy": flat((s.entropy for s in students), np.float32),
        "student/top_ids": flat((s.top_ids for s in students), np.int32),
        "student/top_log_probs": flat((s.top_log_probs for s in students), np.float32),
    }
    kept = arrays["student/top_ids"].shape[1]
    for name in names:
        found = [one.scores.contexts.get(name) for one in analysed]
        nothing = [np.full(length, np.nan) for length in lengths]
        no_top = [np.full((length, kept), -1) for length in lengths]
        pairs = list(zip(found, nothing, no_top, strict=True))
        arrays |= {
            f"{name}/log_ratio": flat((f.log_ratio if f else n for f, n, _ in pairs), np.float32),
            f"{name}/forward_kl": flat((f.forward_kl if f else n for f, n, _ in pairs), np.float32),
            f"{name}/teacher_log_prob": flat((f.teacher.log_probs if f else n for f, n, _ in pairs), np.float32),
            f"{name}/teacher_entropy": flat((f.teacher.entropy if f else n for f, n, _ in pairs), np.float32),
            f"{name}/top_ids": flat((f.teacher.top_ids if f else t for f, _, t in pairs), np.int32),
            f"{name}/top_log_probs": flat(
                (f.teacher.top_log_probs if f else np.full(t.shape, np.nan) for f, _, t in pairs), np.float32
            ),
        }
    ids = [one.subject.attempt.rollout_id for one in analysed]
    write_atomically(path, save(arrays, metadata={"rollout_ids": json.dumps(ids)}))
