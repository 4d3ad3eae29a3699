"""Attempts in the files of other trainers and evaluators: ``LAYOUTS``, found by the columns of a row.

The comment above a layout names the file that writes it and the version that was read. A row that cannot be read is
skipped, with a reason that is counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from stepalign.errors import ConfigError
from stepalign.problems.columns import is_chat
from stepalign.problems.dumped import (
    Dumped,
    Unreadable,
    best_score,
    cut_tokens,
    numbers,
    read_completion,
    read_prompt,
    read_turns,
    score_of,
    whole,
    words_of,
)
from stepalign.problems.rows import Malformed, Row, cell_text, read_rows
from stepalign.storage.fingerprint import sha256_of_file, sha256_of_parts

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".eval")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")
_CONTEXTS = ("privileged_context", "feedback", "critique", "teacher_prompt")
"""Columns whose text a self-teacher was shown."""
_PROMPTS = {"prompt", "input", "nodes", "token_ids", "content", "messages", "conversations"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How one kind of row is recognised, and read."""

    name: str
    columns: tuple[str, ...]
    """All of them are there."""
    read: Callable[[Row], Dumped]
    either: tuple[str, ...] = ()
    """At least one of these is there too."""

    def fits(self, row: Row) -> bool:
        there = all(row.get(name) is not None for name in self.columns)
        return there and (not self.either or any(row.get(name) is not None for name in self.either))


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def _texts(row: Row, prompt: str, completion: str, **more: Any) -> Dumped:
    contexts = {name: str(row[name]) for name in _CONTEXTS if isinstance(row.get(name), str) and row[name].strip()}
    answer = next((text for key in _ANSWERS if (text := cell_text(row.get(key)))), "")
    reference = next((text for key in _REFERENCES if (text := cell_text(row.get(key)))), "")
    found = {"answer": answer, "reference": reference, "contexts": contexts, "step": whole(row.get("step"))} | more
    return Dumped(**read_prompt(row.get(prompt)), text=read_completion(row.get(completion)), **found)


_ANSWERS = ("answer", "expected_answer", "ground_truth", "gts", "label", "solution", "target")
_REFERENCES = ("reference", "reference_solution", "privileged_solution")


def _trl(row: Row) -> Dumped:
    used = {"step", "gen_step", "prompt", "completion", "advantage", "advantages", *_ANSWERS, *_REFERENCES, *_CONTEXTS}
    score = best_score({name: value for name, value in row.items() if name not in used})
    return _texts(row, "prompt", "completion", score=score, step=whole(row.get("step") or row.get("gen_step")))


def _verl(row: Row) -> Dumped:
    score = score_of(row["acc"]) if "acc" in row else score_of(row["score"])
    return _texts(row, "input", "output", score=score)


def _openrlhf(row: Row) -> Dumped:
    return _texts(row, "input", "output", score=score_of(row.get("reward")))


def _slime(row: Row) -> Dumped:
    ids, length, reward = row.get("tokens") or [], whole(row["response_length"]), row.get("reward")
    versions = row.get("weight_versions") or [0]
    more: dict[str, Any] = {
        "score": best_score(reward) if isinstance(reward, Mapping) else score_of(reward),
        "truncated": row.get("status") == "truncated",
        "step": whole(versions[0]),
    }
    if 0 < length <= len(ids):
        before = [0] * (len(ids) - length)
        names = {"sampler_log_prob": "rollout_log_probs", "teacher_log_prob": "teacher_log_probs"}
        columns = {ours: [*before, *row[theirs]] for ours, theirs in names.items() if row.get(theirs)}
        more |= cut_tokens(ids, [*before, *(row.get("loss_mask") or [1] * length)], columns)
    return _texts(row, "prompt", "response", **more)


def _nemo(row: Row) -> Dumped:
    """Each cell is a list of one: the rows are batches of one."""
    one = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in row.items()}
    content, score = one["content"], score_of(one.get("rewards"))
    if is_chat(content):
        roles = [message["role"] for message in content]
        if roles[-1:] != ["assistant"]:
            raise Unreadable("no completion")
        return Dumped(**read_prompt(content[:-1]), text=words_of(content[-1]), score=score)
    if not (isinstance(content, list) and len(content) > 1 and all(isinstance(text, str) for text in content)):
        raise Unreadable("no completion")
    if len(content) > 3:
        raise Unreadable("several turns in the completion")
    fields = {**read_prompt("".join(content[:-1])), "text": content[-1], "score": score}
    if "token_ids" in one:
        length = whole(one["input_lengths"]) or len(one["token_ids"])
        names = {"sampler_log_prob": "generation_logprobs", "trainer_log_prob": "prev_logprobs"}
        columns = {
            ours: (one.get(theirs) or [])[:length] for ours, theirs in {**names, "advantage": "advantages"}.items()
        }
        fields |= cut_tokens(one["token_ids"][:length], one["token_loss_mask"][:length], columns)
    return Dumped(**fields)


def _prime_tokens(row: Row) -> Dumped:
    names = {
        "sampler_log_prob": "inference_logprobs",
        "trainer_log_prob": "trainer_logprobs",
        "log_ratio": "log_importance_ratio",
        "advantage": "advantages",
        "mismatch_kl": "mismatch_kl",
        "entropy": "entropy",
    }
    columns = {ours: row.get(theirs) for ours, theirs in names.items()}
    fields = cut_tokens(row["token_ids"], row["loss_mask"], columns)
    parts = ("step", "rank", "export_sequence_idx")
    name = "-".join(str(row[part]) for part in parts if part in row)
    return Dumped(**fields, step=whole(row.get("step")), name=f"step-{name}" if name else "")


def _trace(row: Row) -> Dumped:
    """The last branch of a trace: from its root to the node that was stored last."""
    nodes, path = row["nodes"], list[Mapping[str, Any]]()
    at = len(nodes) - 1 if nodes else None
    while at is not None:
        path.append(nodes[at])
        at = nodes[at].get("parent")
    path.reverse()
    first = next((place for place, node in enumerate(path) if node.get("sampled")), None)
    if first is None:
        raise Unreadable("no sampled tokens")
    turns = [(str(node["message"].get("role")), words_of(node["message"])) for node in path]
    system, question = read_turns(turns[:first])
    said = [place for place in range(first, len(path)) if path[place].get("sampled")]
    data = row["task"].get("data") or {}
    rewards = [r for r in (row.get("rewards") or {}).values() if isinstance(r, Mapping)]
    score = sum(float(r.get("score") or 0) * float(r.get("weight", 1.0)) for r in rewards) if rewards else math.nan
    fields: dict[str, Any] = {
        "system": system,
        "question": question,
        "text": turns[first][1],
        "answer": next((text for key in _ANSWERS if (text := cell_text(data.get(key)))), ""),
        "name": str(row.get("id") or ""),
        "score": score_of(round(score, 9)),
        "truncated": row.get("stop_condition") in ("max_output_tokens", "max_total_tokens", "context_length"),
    }
    mask = [bool(one) for node in path for one in node.get("mask") or []]
    if any(mask):
        columns = {
            "sampler_log_prob": _spread(path, "logprobs"),
            "teacher_log_prob": _spread(path, "reference_logprobs"),
            "advantage": _spread(path, "advantages"),
        }
        fields |= cut_tokens([i for node in path for i in node.get("token_ids") or []], mask, columns)
    if len(said) > 1:
        if not any(mask):
            raise Unreadable("several turns in the completion")
        fields["text"] = ""  # its tokens spell it
    return Dumped(**fields)


def _spread(path: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """Numbers of sampled tokens, laid out over all tokens of a branch."""
    out: list[Any] = []
    for node in path:
        own = iter(node.get(name) or ())
        out += [next(own, None) if one else None for one in node.get("mask") or ()]
    return out


def _verifiers(row: Row) -> Dumped:
    info = row.get("info")
    more = {"answer": cell_text(info.get("answer"))} if isinstance(info, Mapping) and not row.get("answer") else {}
    return _texts(
        row, "prompt", "completion", score=score_of(row.get("reward")), truncated=bool(row.get("is_truncated")), **more
    )


_LETTERS: Mapping[Any, float] = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Grades of inspect_ai: correct, incorrect, partial, no answer."""


def _inspect(row: Row) -> Dumped:
    stored = row.get("attachments") or {}

    def open_text(text: Any) -> Any:  # long texts are kept beside the sample
        return stored.get(text.removeprefix("attachment://"), text) if isinstance(text, str) else text

    choices = (row.get("output") or {}).get("choices") or []
    if not choices:
        raise Unreadable("no completion")
    said = [message for message in row.get("messages") or [] if isinstance(message, Mapping)]
    before = [m for m in said if m.get("role") in ("system", "user") and m.get("source") != "generate"]
    if sum(message.get("role") == "assistant" for message in said) > 1:
        raise Unreadable("several turns in the completion")
    cell = [{**m, "content": open_text(m.get("content"))} for m in before] or open_text(row["input"])
    target = row.get("target")
    scores = {name: s.get("value") for name, s in (row.get("scores") or {}).items() if isinstance(s, Mapping)}
    message = choices[0].get("message") or {}
    tokens = ((choices[0].get("logprobs") or {}).get("content")) or []
    return Dumped(
        **read_prompt(cell),
        text=open_text(words_of(message)),
        answer=cell_text(target[0] if isinstance(target, list) and target else target),
        name=f"{row['id']}-{row['epoch']}",
        score=best_score({name: _LETTERS.get(value, value) for name, value in scores.items()}),
        truncated=choices[0].get("stop_reason") in ("max_tokens", "model_length"),
        pieces=[str(token.get("token", "")) for token in tokens],
        values={"sampler_log_prob": numbers([token.get("logprob") for token in tokens])} if tokens else {},
    )


def _chat(row: Row) -> Dumped:
    turns: Any = row.get("messages") or row.get("conversations")
    if turns and isinstance(turns[0], Mapping) and "from" in turns[0]:  # the ShareGPT form
        names = {"human": "user", "gpt": "assistant"}
        turns = [{"role": names.get(t.get("from"), t.get("from")), "content": t.get("value")} for t in turns]
    if not is_chat(turns) or turns[-1]["role"] != "assistant":
        raise Unreadable("no completion")
    score = best_score({name: row[name] for name in ("reward", "score", "acc", "correct") if name in row})
    return _texts({**row, "prompt": turns[:-1], "completion": turns[-1:]}, "prompt", "completion", score=score)


LAYOUTS: tuple[Layout, ...] = (
    # PrimeIntellect-ai/prime-rl src/prime_rl/trainer/rl/token_export.py, 559b447
    Layout(
        "prime-rl token export", ("token_ids", "loss_mask", "inference_logprobs", "trainer_logprobs"), _prime_tokens
    ),
    # PrimeIntellect-ai/prime-rl src/prime_rl/monitors/file.py, 559b447; PrimeIntellect-ai/verifiers
    # verifiers/v1/episode.py and trace.py, a60a606
    Layout("prime-rl or verifiers rollouts", ("task", "nodes"), _trace),
    # PrimeIntellect-ai/verifiers verifiers/legacy/utils/save_utils.py, a60a606
    Layout("verifiers results", ("example_id", "prompt", "completion", "reward"), _verifiers),
    # NVIDIA-NeMo/RL nemo_rl/algorithms/grpo.py and utils/logger.py, 7ea279a
    Layout("NeMo-RL data", ("content", "idx"), _nemo, either=("rewards", "input_lengths")),
    # THUDM/slime slime/utils/types.py (Sample.to_dict), 624b824
    Layout("slime samples", ("prompt", "response", "response_length"), _slime),
    # UKGovernmentBEIS/inspect_ai src/inspect_ai/log/_log.py, 499e615
    Layout("inspect_ai log", ("input", "target", "output", "epoch"), _inspect),
    # volcengine/verl verl/trainer/ppo/ray_trainer.py (_dump_generations), b178a3c
    Layout("verl rollouts", ("input", "output", "score"), _verl),
    # OpenRLHF/OpenRLHF openrlhf/cli/batch_inference.py, before 6a981c8
    Layout("OpenRLHF samples", ("input", "output"), _openrlhf),
    # huggingface/trl trl/trainer/grpo_trainer.py (log), f2cd577, and 1.16.0; modelscope/ms-swift
    # swift/megatron/trainers/rollout_mixin.py, 3602360
    Layout("TRL or ms-swift completions", ("prompt", "completion"), _trl, either=("step", "gen_step", "advantage")),
    Layout("prompts and completions", ("prompt", "completion"), _trl),
    Layout("chat messages", ("messages",), _chat),
    Layout("chat messages", ("conversations",), _chat),
)


def find_layout(row: Row) -> Layout | None:
    """The layout of a row; None for a plain file's, and for a row of none."""
    plain = row.keys() & {"question", "problem"} and not row.keys() & _PROMPTS
    if plain or "contexts" in row or {"rollout_id", "problem_id"} <= row.keys():
        return None
    return next((layout for layout in LAYOUTS if layout.fits(row)), None)


# ---------------------------------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True, slots=True)
class Dump:
    """The files of a dump, and the layout of its first row."""

    path: Path
    files: tuple[Path, ...]
    layout: Layout
    sha256: str

    @property
    def message(self) -> str:
        files = f" in {len(self.files)} files" if len(self.files) > 1 else ""
        return f"{self.path}: {self.layout.name}{files}, known by the columns {', '.join(self.layout.columns)}"


def open_dump(path: Path) -> Dump | None:
    """The dump behind a path - a file, or a folder of files - or None where there is none that we know.

    Raises:
        ConfigError: a file that cannot be read as its name says, or a pickle, which is never opened.
    """
    found = [path]
    if path.is_dir():
        found = sorted(
            (p for p in path.rglob("*") if p.name.endswith((*SUFFIXES, *PICKLES)) and p.is_file()), key=_natural
        )
    layouts = {file: find_layout(row) if (row := _first_row(file)) is not None else None for file in found}
    layout = next((layout for layout in layouts.values() if layout), None)
    if layout is None:
        return None
    files = tuple(file for file, other in layouts.items() if other is layout)
    return Dump(path, files, layout, sha256_of_parts(sha256_of_file(file) for file in files))


def _first_row(file: Path) -> Row | None:
    """The first row that is one, an empty cell filled from the next rows of its columns: a score may be missing once.

    A folder may hold metadata beside its dump. Raises ConfigError for a pickle.
    """
    if file.suffix in PICKLES:
        raise ConfigError(
            "a pickle can run code when it is opened, so it is not read",
            where=str(file),
            hint="write its samples as JSON lines where it was made: one json.dumps(sample) a line, tensors as lists",
        )
    rows = [row for _, row in islice(_rows(file), 10) if not isinstance(row, Malformed)]
    alike = [row for row in rows if row.keys() == rows[0].keys()]
    return {name: next((r[name] for r in alike if r[name] is not None), None) for name in rows[0]} if rows else None


def _natural(path: Path) -> list[str]:
    """Step 10 comes after step 9."""
    return [part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def read_dump(dump: Dump, skipped: Counter[str]) -> Iterator[Dumped]:
    """All attempts of a dump under the dump's own names, or numbered; rows that give none are counted."""
    names: set[str] = set()
    number = 0
    for file in dump.files:
        for _, row in _rows(file):
            number += 1
            try:
                one = _read(row, dump.layout)
            except Unreadable as fault:
                skipped[str(fault)] += 1
                continue
            name = one.name or f"line-{number:06d}"
            name = f"{name}-{number}" if name in names else name
            names.add(name)
            yield replace(one, name=name)


def _read(row: Row | Malformed, layout: Layout) -> Dumped:
    if isinstance(row, Malformed):
        raise Unreadable(row.reason)
    if not row.keys() >= set(layout.columns):
        raise Unreadable("other columns")
    try:
        one = layout.read(row)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):  # outside data may hold anything
        raise Unreadable("cells of another kind") from None
    if not (one.text.strip() or one.ids):
        raise Unreadable("no completion")
    if not (one.question or one.prompt_ids):
        raise Unreadable("no question")
    return one


def _rows(file: Path) -> Iterator[tuple[int, Row | Malformed]]:
    """The rows of a file; a log gives its samples, an episode its traces."""
    for number, row in read_rows(str(file)):
        inner = None if isinstance(row, Malformed) else row.get("samples" if "eval" in row else "traces")
        if not isinstance(inner, list):
            yield number, row
            continue
        yield from ((number, one if isinstance(one, Mapping) else Malformed("not an object")) for one in inner)
        if not inner:
            yield number, Malformed("an episode or log without attempts")
