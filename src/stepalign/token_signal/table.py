"""The token table: one completion, token by token, and the numbers of every context it was scored under.

Pages, terminal, figures and notebooks read this. A line of signal.jsonl holds one completion under one context, an
entry of signal.json one completion under all of its contexts (docs/formats.md); both are read and written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from stepalign.errors import ConfigError
from stepalign.feedback.alignment import Alignment, align
from stepalign.feedback.steps import code_spans, detect_style
from stepalign.models.prompts import tokens_to_steps
from stepalign.records import StepStatus

Json = Mapping[str, Any]
Alternatives = Sequence[Sequence[tuple[str, float]]]
"""Per token (text, log-probability), strongest first."""

DIGITS = 6
"""Decimals of the numbers, nats. The arrays of a signal folder hold all that float32 has."""
SERIES = ("log_ratio", "student_log_prob", "teacher_log_prob", "forward_kl", "student_entropy", "teacher_entropy")
LEAST_ALTERNATIVE = -9.2
"""Alternatives below this log-probability (one in ten thousand) are in the arrays only."""
NULL, SHUFFLED = " / null", " / shuffled"
"""Behind the name of a context: the same form and length without content, and the same design's context of another
problem's attempt."""
_DAMAGED = "the file is damaged or half-written: write it again with `stepalign signal`"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenTable:
    """One completion under one context. Columns have one entry per completion token; numbers in nats, NaN undefined."""

    context: str
    """Its name."""
    text: str
    """The part of it that the self-teacher saw."""
    tokens: list[str]
    """The characters behind each token; special tokens by their name."""
    step: np.ndarray
    """Index of the step each token belongs to, -1 before the first."""
    log_ratio: np.ndarray
    """A_t = log p(y_t | question, context, y_<t) - log p(y_t | question, y_<t)."""
    student_log_prob: np.ndarray
    teacher_log_prob: np.ndarray
    forward_kl: np.ndarray
    """KL(self-teacher || student) over the full vocabulary."""
    student_entropy: np.ndarray
    teacher_entropy: np.ndarray
    top_student: Alternatives | None = None
    top_teacher: Alternatives | None = None
    dropped_tokens: int = 0
    """Tokens of the context that did not fit into the self-teacher's prompt."""
    critic_case: str = ""
    first_error: str = ""
    """The critic's verdict on the attempt, where the context is its critique."""
    prompt: str | None = None
    """The self-teacher's whole prompt, where it was kept."""
    calibrated: np.ndarray | None = None
    """A_t less that of the null context: what any words in the context's place would do is gone. None where no null
    context was scored, and for a null context."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedStep:
    """A step of a completion: a half-open span of its characters, and what is known of it."""

    label: str
    start: int
    end: int
    status: StepStatus = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredCompletion:
    """One completion cut into tokens and steps, with a table per context."""

    rollout_id: str
    question: str
    expected_answer: str | None = None
    reference: str | None = None
    verdict: str = ""
    case: str = ""
    text: str
    token_ids: Sequence[int | None]
    tokens: list[str]
    spans: Sequence[tuple[int, int]]
    """Half-open span of characters per token; empty for special tokens."""
    special: Sequence[int]
    """Positions of special tokens."""
    unknown_tokens: int = 0
    """Tokens that the vocabulary lacks."""
    steps: Sequence[MarkedStep]
    step: np.ndarray
    """Index of each token's step, -1 before the first."""
    wrong_tokens: Sequence[int] = ()
    """Positions of the tokens that state the first wrong result, where they are known."""
    result_tokens: Sequence[int] = ()
    """Positions of tokens that state a result, where a program knows them."""
    tables: dict[str, TokenTable]
    """By the name of the context."""

    def stretches(self) -> Iterator[tuple[MarkedStep, int, int]]:
        """(step, first token, one past the last), covering all tokens in order; text before the first step has "" for
        a label."""
        for index, run in groupby(range(len(self.tokens)), key=lambda token: int(self.step[token])):
            tokens = list(run)
            none = MarkedStep(label="", start=0, end=0)
            yield (self.steps[index] if index >= 0 else none), tokens[0], tokens[-1] + 1

    def gaps(self) -> dict[int, str]:
        """Text that no token covers, by the position of the token after it: nothing that was written disappears."""
        found, reached = {}, 0
        for position, (start, end) in [*enumerate(self.spans), (len(self.spans), (len(self.text), len(self.text) + 1))]:
            if end > start:
                if start > reached:
                    found[position] = self.text[reached:start]
                reached = max(reached, end)
        return found

    def joined(self) -> set[int]:
        """Tokens that are a further piece of the character which the token before them begins."""
        special = set(self.special)
        return {
            at
            for at in range(1, len(self.spans))
            if at not in special
            and (self.spans[at][0] == self.spans[at][1] or self.spans[at][0] < self.spans[at - 1][1])
        }


def calibrate(tables: Mapping[str, TokenTable]) -> dict[str, TokenTable]:
    """The tables with their calibrated A_t: less that of the context's own null ("NAME / null"), else of "null"."""

    def one(name: str, table: TokenTable) -> TokenTable:
        null = tables.get(name + NULL) or tables.get("null")
        if null is None or not table.text or name == "null" or name.endswith(NULL):
            return table
        return replace(table, calibrated=np.round(table.log_ratio - null.log_ratio, DIGITS) + 0.0)

    return {name: one(name, table) for name, table in tables.items()}


def align_feedback(attempt: str, feedback: str, *, expected_answer: str | None = None) -> Alignment | None:
    """The fate of the attempt's steps in feedback that is written in steps; None for any other feedback.

    Steps are tagged, in the attempt's own style, or both texts hold code.
    """
    style = detect_style(feedback)
    traced = style == "tags" or (style == detect_style(attempt) and style in ("step_words", "numbered", "headings"))
    traced = traced or bool(code_spans(attempt) and code_spans(feedback))
    found = align(attempt, feedback, expected_answer=expected_answer) if attempt and feedback and traced else None
    return found if found is not None and found.critique_steps else None


# ---------------------------------------------------------------------------------------------------------------------
# signal.jsonl

_SHARED = ("rollout_id", "question", "expected_answer", "reference", "verdict", "case", "text", "unknown_tokens")


def to_rows(scored: ScoredCompletion) -> list[dict[str, Any]]:
    """One line per context. Every line holds all that the contexts share, so that it can be read by itself."""
    shared = {
        **{key: getattr(scored, key) for key in _SHARED},
        "token_ids": list(scored.token_ids),
        "tokens": scored.tokens,
        "spans": [list(span) for span in scored.spans],
        "special": list(scored.special),
        "step": scored.step.tolist(),
        "wrong_tokens": list(scored.wrong_tokens),
        "result_tokens": list(scored.result_tokens),
    }
    return [
        {
            **shared,
            "context": table.context,
            "context_text": table.text,
            "context_tokens_dropped": table.dropped_tokens,
            "critic_case": table.critic_case,
            "first_error": table.first_error,
            "steps": [
                {**asdict(step), "sum": round(float(table.log_ratio[table.step == index].sum()), DIGITS) + 0.0}
                for index, step in enumerate(scored.steps)
            ],
            **_numbers(table),
            **({"calibrated": table.calibrated.tolist()} if table.calibrated is not None else {}),
        }
        for table in scored.tables.values()
    ]


def from_rows(rows: Sequence[Json]) -> ScoredCompletion:
    """The lines of one completion, the first of which gives all that they share."""
    contexts = [
        {
            **row,
            "name": row["context"],
            "text": row["context_text"],
            "case": row["critic_case"],
            "dropped_tokens": row.get("context_tokens_dropped"),
        }
        for row in rows
    ]
    return _read(rows[0], contexts)


# ---------------------------------------------------------------------------------------------------------------------
# signal.json


def to_page(scored: ScoredCompletion) -> dict[str, Any]:
    """An entry of ``rollouts`` in signal.json."""
    special = set(scored.special)
    return {
        **{key: getattr(scored, key) for key in _SHARED},
        "tokens": [
            {"text": text, "start": start, "end": end, "id": token_id, "special": index in special}
            for index, (text, (start, end), token_id) in enumerate(
                zip(scored.tokens, scored.spans, scored.token_ids, strict=True)
            )
        ],
        "steps": [asdict(step) for step in scored.steps],
        "contexts": [
            {
                "name": table.context,
                "text": table.text,
                "case": table.critic_case,
                "first_error": table.first_error,
                **({"prompt": table.prompt, "dropped_tokens": table.dropped_tokens} if table.prompt else {}),
                **_numbers(table),
            }
            for table in scored.tables.values()
        ],
    }


def from_page(rollout: Json, position: int = 0) -> ScoredCompletion:
    """An entry of ``rollouts`` in signal.json.

    Raises:
        ConfigError: a column has not one value per token.
    """
    tokens, text = rollout.get("tokens") or [], str(rollout.get("text", ""))
    spans = [(int(token.get("start") or 0), int(token.get("end") or 0)) for token in tokens]
    columns = {
        "tokens": [text[a:b] if b > a else str(t.get("text", "")) for t, (a, b) in zip(tokens, spans, strict=True)],
        "spans": spans,
        "token_ids": [token.get("id") for token in tokens],
        "special": [index for index, token in enumerate(tokens) if token.get("special")],
    }
    return _read({"rollout_id": str(position), **rollout, **columns}, rollout.get("contexts") or [])


def read_page(signal: Json) -> list[ScoredCompletion]:
    """The completions of a signal.json."""
    return [from_page(rollout, position) for position, rollout in enumerate(signal.get("rollouts") or [])]


def context_labels(signal: Json) -> dict[str, str]:
    """Names and labels of all contexts of a signal.json, declared ones first, in the order of the file."""
    labels = {str(row["name"]): str(row.get("label") or row["name"]) for row in signal.get("contexts") or []}
    names = [str(entry["name"]) for row in signal.get("rollouts") or [] for entry in row.get("contexts") or []]
    return labels | {name: name for name in names if name not in labels}


# ---------------------------------------------------------------------------------------------------------------------


def _read(shared: Json, contexts: Sequence[Json]) -> ScoredCompletion:
    text, tokens = str(shared.get("text", "")), shared["tokens"]
    steps = [
        MarkedStep(
            label=str(row.get("label", "")),
            start=int(row.get("start") or 0),
            end=int(row.get("end") or 0),
            status=row.get("status") or "unknown",
        )
        for row in shared.get("steps") or []
    ]
    pairs = [(start, end) for start, end in shared["spans"]]
    step = np.array(tokens_to_steps(text, pairs, [step.start for step in steps]), dtype=np.int64)
    where = f"rollout {shared['rollout_id']}"
    return ScoredCompletion(
        rollout_id=str(shared["rollout_id"]),
        question=str(shared.get("question", "")),
        expected_answer=shared.get("expected_answer"),
        reference=shared.get("reference"),
        verdict=str(shared.get("verdict", "")),
        case=str(shared.get("case", "")),
        text=text,
        token_ids=shared["token_ids"],
        tokens=tokens,
        spans=pairs,
        special=shared["special"],
        unknown_tokens=shared.get("unknown_tokens") or 0,
        steps=steps,
        step=step,
        wrong_tokens=shared.get("wrong_tokens") or (),
        result_tokens=shared.get("result_tokens") or (),
        tables=calibrate({str(entry["name"]): _read_table(entry, tokens, step, where) for entry in contexts}),
    )


def _read_table(entry: Json, tokens: list[str], step: np.ndarray, where: str) -> TokenTable:
    columns = {name: entry[name] for name in SERIES if entry.get(name) is not None}
    tops = {name: entry[name] for name in ("top_student", "top_teacher") if entry.get(name)}
    for name, values in (columns | tops).items():
        if len(values) != len(tokens):
            raise ConfigError(
                f"{where}: context {entry['name']!r} has {len(values)} {name} values for {len(tokens)} tokens",
                hint=_DAMAGED,
            )
    undefined = [None] * len(tokens)
    return TokenTable(
        context=str(entry["name"]),
        text=str(entry.get("text") or ""),
        tokens=tokens,
        step=step,
        **{name: np.array(columns.get(name, undefined), dtype=np.float64) for name in SERIES},
        **tops,
        dropped_tokens=entry.get("dropped_tokens") or 0,
        critic_case=str(entry.get("case") or ""),
        first_error=str(entry.get("first_error") or ""),
        prompt=entry.get("prompt"),
    )


def _numbers(table: TokenTable) -> dict[str, Any]:
    """The columns as lists: six decimals, no -0.0."""
    numbers: dict[str, Any] = {name: (np.round(getattr(table, name), DIGITS) + 0.0).tolist() for name in SERIES}
    if table.top_student is not None:
        numbers |= {"top_student": table.top_student, "top_teacher": table.top_teacher}
    return numbers
