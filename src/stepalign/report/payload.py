"""From signal.json to what the viewer needs, small enough to stand inside one page.

A page holds an index - contexts, scale, one line per rollout - and the rollouts one by one, so that a browser opens the
first without reading the last. Values are rounded to what the viewer shows: A_t and log-probabilities to six decimals,
KL and entropies to four, alternatives to three. What all contexts of a rollout share (the student's side) is stored
once, and the self-teacher's log-probability as the rest of ``student + A_t`` in millionths, nearly always 0.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from stepalign.errors import ConfigError
from stepalign.feedback.alignment import Alignment, align
from stepalign.feedback.steps import detect_style
from stepalign.report.scale import PERCENTILE, shared_limit
from stepalign.report.text import escape_json, number, safe_json

Json = Mapping[str, Any]

PLAIN_LIMIT = 200_000
"""Characters of JSON above which the rollouts of a page are compressed."""
LEAST_BUDGET = 850_000
BYTES_PER_VALUE = LEAST_BUDGET / (10 * 2048 * 2)
"""Fewer alternatives per token are kept where a page would be larger than the larger of these two: bytes, and bytes per
token and context. Ten rollouts of 2,048 tokens under two contexts so stay below 1 MB."""
LEAST_ALTERNATIVE = -9.2
"""Alternatives below this log-probability (one in ten thousand) are left out."""
NUM_BARS = 48
"""Stretches of a rollout whose strongest A the list of rollouts shows."""

_SERIES = ("student_log_prob", "teacher_log_prob", "forward_kl", "student_entropy", "teacher_entropy")


def page_elements(signal: Json) -> tuple[str, list[str]]:
    """The contents of a page's data elements: the index, and one per rollout, compressed where they are long together.

    Long pages keep as many alternatives per token as fit; ``alternatives`` in the index says how many. A_t and the
    log-probabilities keep their six decimals whatever the length.
    """
    rows = _rows(signal, "rollouts")
    kept, digits = _detail(signal, rows)
    data = viewer_data(signal, alternatives=kept, digits=digits)
    texts = [_dump(rollout) for rollout in data["rollouts"]]
    if sum(map(len, texts)) > PLAIN_LIMIT:
        texts = [json.dumps(_packed(text)) for text in texts]
    return safe_json(index_of(data)), texts


def page_data(signal: Json) -> dict[str, Any]:
    """What a page holds, as one JSON-ready value: ``index`` and ``rollouts``. For a page that asks for its data."""
    data = viewer_data(signal)
    return {"index": index_of(data), "rollouts": data["rollouts"]}


def _detail(signal: Json, rows: Sequence[Json]) -> tuple[int, int]:
    """(alternatives to keep, decimals of KL and entropies) that fit, judged by a few rollouts."""
    most = max((len(row) for rollout in rows for row in _alternative_rows(rollout)), default=0)
    counts = [kept for kept in sorted({most, 5, 3, 2, 1, 0}, reverse=True) if kept <= most]
    details = [*((kept, 4) for kept in counts), (0, 3)]
    sizes = [_num_values(rollout) for rollout in rows]
    sample = rows[:: math.ceil(len(rows) / 4)] if rows else []
    sampled = sum(map(_num_values, sample)) or 1
    budget = max(LEAST_BUDGET, BYTES_PER_VALUE * sum(sizes))
    for kept, digits in details:
        some = viewer_data({**signal, "rollouts": sample}, alternatives=kept, digits=digits)
        texts = [_dump(rollout) for rollout in some["rollouts"]]
        factor = sum(sizes) / sampled
        if factor * sum(map(len, texts)) <= PLAIN_LIMIT or factor * sum(len(_packed(t)) for t in texts) <= budget:
            return kept, digits
    return details[-1]


def _num_values(rollout: Json) -> int:
    return len(_rows(rollout, "tokens")) * max(1, len(_rows(rollout, "contexts")))


def _dump(rollout: Json) -> str:
    return escape_json(json.dumps(rollout, ensure_ascii=True, separators=(",", ":"), allow_nan=False))


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def index_of(data: Json) -> dict[str, Any]:
    """``viewer_data`` with a line per rollout in the place of the rollouts."""
    return {**data, "rollouts": [_line(rollout) for rollout in data["rollouts"]]}


def _line(rollout: Json) -> dict[str, Any]:
    contexts = rollout["contexts"]
    return {
        **{key: rollout[key] for key in ("id", "case", "verdict", "question")},
        "tokens": len(rollout["pieces"]),
        "contexts": [context["context"] for context in contexts],
        "strongest": max(
            (abs(value) for context in contexts for value in context["a"] if value is not None), default=0
        ),
        "bars": [_bars(context["a"]) for context in contexts],
    }


def _bars(values: Sequence[float | None]) -> list[float]:
    """The strongest A of each of at most NUM_BARS stretches."""
    count = min(NUM_BARS, len(values))
    edges = [bar * len(values) // count for bar in range(count + 1)] if count else []
    return [round(max((value or 0.0 for value in values[start:end]), key=abs), 3) for start, end in pairwise(edges)]


def viewer_data(signal: Json, *, alternatives: int = 5, digits: int = 4) -> dict[str, Any]:
    """Everything the viewer draws, as JSON-ready data.

    Args:
        alternatives: most alternatives per token to keep, of either side.
        digits: decimals of KL and entropies.
    """
    rollouts = [
        _rollout(rollout, index, signal, alternatives, digits)
        for index, rollout in enumerate(_rows(signal, "rollouts"))
    ]
    labels = _context_labels(signal)
    values = [value for rollout in rollouts for context in rollout["contexts"] for value in context["a"]]
    return {
        "model": str(signal.get("model", "")),
        "temperature": number(signal.get("temperature")),
        "unit": str(signal.get("unit", "nats")),
        "definition": str(signal.get("definition", "")),
        "percentile": PERCENTILE,
        "limit": round(shared_limit(values), 6),
        "alternatives": alternatives,
        "digits": digits,
        "contexts": [{"name": name, "label": label} for name, label in labels.items()],
        "rollouts": rollouts,
    }


def _context_labels(signal: Json) -> dict[str, str]:
    """Names and labels of all contexts, declared ones first, in the order of the file."""
    labels = {str(row.get("name")): str(row.get("label") or row.get("name")) for row in _rows(signal, "contexts")}
    for rollout in _rows(signal, "rollouts"):
        for context in _rows(rollout, "contexts"):
            labels.setdefault(str(context.get("name")), str(context.get("name")))
    return labels


def _rollout(rollout: Json, position: int, signal: Json, alternatives: int, digits: int) -> dict[str, Any]:
    where = f"rollout {rollout.get('rollout_id', position)}"
    text = str(rollout.get("text", ""))
    tokens = _rows(rollout, "tokens")
    names = list(_context_labels(signal))
    contexts = [
        _context(context, len(tokens), names, where, alternatives, digits) for context in _rows(rollout, "contexts")
    ]
    steps, starts = _steps(_rows(rollout, "steps"), tokens, text)
    for context in contexts:
        context |= _feedback_steps(text, context["text"], starts)
    out: dict[str, Any] = {
        "id": str(rollout.get("rollout_id", position)),
        "case": str(rollout.get("case", "")),
        "verdict": str(rollout.get("verdict", "")),
        "question": str(rollout.get("question", "")),
        "expected": _text(rollout.get("expected_answer")),
        "reference": _text(rollout.get("reference")),
        "pieces": [_piece(token, text) for token in tokens],
        "gaps": _gaps(tokens, text),
        "ids": [_whole(token.get("id")) for token in tokens],
        "unknown": _whole(rollout.get("unknown_tokens")) or 0,
        "special": [index for index, token in enumerate(tokens) if token.get("special")],
        "joined": [index for index, token in enumerate(tokens) if index and _continues(tokens[index - 1], token)],
        "steps": steps,
        "contexts": contexts,
    }
    for key in ("student", "student_entropy", "top_student"):
        sides = [context[key] for context in contexts]
        # The student does not see the context: its numbers are stored once unless a file says otherwise.
        if sides and all(side == sides[0] for side in sides):
            out[key] = sides[0]
            for context in contexts:
                del context[key]
    return out


def _context(
    context: Json, length: int, names: Sequence[str], where: str, alternatives: int, digits: int
) -> dict[str, Any]:
    name = str(context.get("name"))
    ratio = _series(context, "log_ratio", length, where)
    student, teacher, kl, student_entropy, teacher_entropy = (_series(context, key, length, where) for key in _SERIES)
    ratio, student = _rounded(ratio, 6), _rounded(student, 6)
    return {
        "context": names.index(name),
        "text": str(context.get("text") or ""),
        "prompt": _text(context.get("prompt")),
        "dropped": _whole(context.get("dropped_tokens")) or 0,
        "case": str(context.get("case") or ""),
        "first_error": str(context.get("first_error") or ""),
        "a": ratio,
        "student": student,
        "rest": [_rest(t, s, a) for t, s, a in zip(_rounded(teacher, 6), student, ratio, strict=True)],
        "kl": _rounded(kl, digits),
        "student_entropy": _rounded(student_entropy, digits),
        "entropy": _rounded(teacher_entropy, digits),
        "top_student": _alternatives(context, "top_student", length, where, alternatives),
        "top": _alternatives(context, "top_teacher", length, where, alternatives),
    }


def _rest(teacher: float | None, student: float | None, ratio: float | None) -> int | None:
    """Millionths by which the self-teacher's log-probability differs from student + A_t; None where it is undefined."""
    if teacher is None or student is None or ratio is None:
        return None
    return round((teacher - student - ratio) * 1e6)


def _series(context: Json, key: str, length: int, where: str) -> list[float | None]:
    values = context.get(key)
    if values is None:
        return [None] * length
    if not isinstance(values, list) or len(values) != length:
        size = len(values) if isinstance(values, list) else "no list of"
        raise ConfigError(
            f"{where}: context {context.get('name')!r} has {size} {key} values for {length} tokens",
            hint="the file is damaged or half-written: write it again with `stepalign signal`",
        )
    return [number(value) for value in values]


def _alternatives(context: Json, key: str, length: int, where: str, kept: int) -> list[list[Any]] | None:
    """Per token a flat list text, log-probability, text, ...; None when the file has none or none are kept."""
    rows = context.get(key)
    if not rows or kept == 0:
        return None
    if not isinstance(rows, list) or len(rows) != length:
        raise ConfigError(
            f"{where}: context {context.get('name')!r} has {key} for {len(rows)} of {length} tokens",
            hint="the file is damaged or half-written: write it again with `stepalign signal`",
        )
    return [_kept(row or [], kept) for row in rows]


def _kept(row: Sequence[Any], kept: int) -> list[Any]:
    likely = [(str(text), number(value)) for text, value in row[:kept]]
    likely = [(text, value) for text, value in likely if value is not None and value >= LEAST_ALTERNATIVE]
    return [part for text, value in likely for part in (text, _round(value, 3))]


def _alternative_rows(rollout: Json) -> list[Sequence[Any]]:
    return [
        row or []
        for context in _rows(rollout, "contexts")
        for key in ("top_student", "top_teacher")
        for row in context.get(key) or []
    ]


def _piece(token: Json, text: str) -> str:
    """What a token shows: its span of the text, or its own name where it has none (special tokens)."""
    start, end = _span(token)
    return text[start:end] if end > start else str(token.get("text", ""))


def _continues(previous: Json, token: Json) -> bool:
    """Whether a token is a further piece of the character the token before it belongs to."""
    if token.get("special"):
        return False
    start, end = _span(token)
    return start == end or (start, end) == _span(previous) or start < _span(previous)[1]


def _gaps(tokens: Sequence[Json], text: str) -> dict[int, str]:
    """Text that no token covers, keyed by the token it stands before (so that nothing a solver wrote disappears)."""
    out, reached = {}, 0
    for index, token in enumerate(tokens):
        start, end = _span(token)
        if end > start:
            if start > reached:
                out[index] = text[reached:start]
            reached = max(reached, end)
    if reached < len(text):
        out[len(tokens)] = text[reached:]
    return out


def _feedback_steps(attempt: str, feedback: str, starts: Sequence[int]) -> dict[str, Any]:
    """What became of the attempt's steps in the feedback, for the two to stand side by side.

    Args:
        starts: first character of each step that the viewer shows.

    Returns:
        ``rows``: [shown step beside which it stands, copied | edited | missing | added, label, start, end] in reading
        order, with the span of the feedback's step, null where it has none; empty for feedback that is no trace of
        steps. ``alignment``: the counts and findings, or null.
    """
    traced = bool(attempt) and bool(feedback) and _is_trace(attempt, feedback)
    found = align(attempt, feedback) if traced else None
    if found is None or not found.critique_steps:
        return {"rows": [], "alignment": None}
    rows: list[list[Any]] = []
    place = 0
    for match in found.matches:
        if match.solver is not None:
            place = max(place, bisect_right(starts, found.solver_steps[match.solver].start) - 1)
        step = found.critique_steps[match.critique] if match.critique is not None else None
        span = [step.label, step.start, step.end] if step else ["", None, None]
        rows.append([place, match.status, *span])
    return {"rows": rows, "alignment": _findings(found)}


def _is_trace(attempt: str, feedback: str) -> bool:
    """Whether feedback is written in steps: tagged, or in the attempt's own style and with more than one."""
    style = detect_style(feedback)
    return style == "tags" or (style == detect_style(attempt) and style in ("step_words", "numbered", "headings"))


def _findings(found: Alignment) -> dict[str, Any]:
    return {
        "copied": found.copied,
        "edited": found.edited,
        "missing": found.missing,
        "added": found.added,
        "verbatim_share": _round(found.verbatim_share, 4),
        "wrong_text_repeated": found.wrong_text_repeated,
        "full_solution": found.full_solution,
    }


def _steps(steps: Sequence[Json], tokens: Sequence[Json], text: str) -> tuple[list[list[Any]], list[int]]:
    """Steps as [label, status, first token, one past the last token], covering all tokens in order; and their starts.

    A token belongs to the step in which its first visible character stands: the blank that a word carries in front of
    it may still be the end of the step before. Tokens without text follow the token before them.
    """
    starts = [int(step.get("start") or 0) for step in steps]
    owners: list[int] = []
    for token in tokens:
        start, end = _span(token)
        piece = text[start:end]
        visible = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
        owner = bisect_right(starts, visible) - 1
        if end == start and owners:
            owner = owners[-1]
        owners.append(max(owner, owners[-1]) if owners else owner)
    out: list[list[Any]] = []
    first_characters: list[int] = []
    for index, owner in enumerate(owners):
        if not index or owner != owners[index - 1]:
            step = steps[owner] if owner >= 0 else {}
            out.append([str(step.get("label", "")), str(step.get("status") or "unknown"), index, index])
            first_characters.append(starts[owner] if owner >= 0 else 0)
        out[-1][3] = index + 1
    return out, first_characters


def _span(token: Json) -> tuple[int, int]:
    return int(token.get("start") or 0), int(token.get("end") or 0)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _rounded(values: Sequence[float | None], digits: int) -> list[float | None]:
    return [_round(value, digits) for value in values]


def _round(value: Any, digits: int) -> float | None:
    plain = number(value)
    # + 0.0 turns -0.0 into 0.0.
    return None if plain is None else round(plain, digits) + 0.0


def _rows(mapping: Json, key: str) -> list[Json]:
    value = mapping.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
