"""From signal.json to the data of the viewer, small enough for one page.

A page holds an index - contexts, scale, one line per rollout - and the rollouts one by one, so that a browser opens the
first without reading the last. Values are rounded to what the viewer shows: A_t and log-probabilities to six decimals,
KL and entropies to four, alternatives to three. The student's side, which all contexts of a rollout share, is stored
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

import numpy as np

from stepalign.feedback.alignment import Alignment
from stepalign.report.scale import PERCENTILE, limit_of
from stepalign.report.text import escape_json, number, percent, safe_json
from stepalign.token_signal.table import (
    DIGITS,
    LEAST_ALTERNATIVE,
    Alternatives,
    ScoredCompletion,
    TokenTable,
    align_feedback,
    context_labels,
    read_page,
)

Json = Mapping[str, Any]

PLAIN_LIMIT = 200_000
"""Characters of JSON above which the rollouts of a page are compressed."""
LEAST_BUDGET = 850_000
BYTES_PER_VALUE = LEAST_BUDGET / (10 * 2048 * 2)
"""Fewer alternatives per token are kept where a page would be larger than the larger of these two: bytes, and bytes per
token and context. Ten rollouts of 2,048 tokens under two contexts so stay below 1 MB."""
CONTEXT_FACTS = ("limit", "of", "step")
"""Facts of a context beyond its label: a scale of its own; the design and the step of a checkpoint's context."""
NUM_BARS = 48
"""Stretches of a rollout whose strongest A the list of rollouts shows."""


def page_elements(signal: Json) -> tuple[str, list[str], int]:
    """The contents of a page's data elements: the index, and one per rollout, compressed where they are long together;
    and which rollout is shown first.

    Long pages keep as many alternatives per token as fit; ``alternatives`` in the index says how many. A_t and the
    log-probabilities keep their six decimals whatever the length.
    """
    rollouts, names = read_page(signal), list(context_labels(signal))
    kept, digits = _detail(rollouts, names)
    data = viewer_data(signal, alternatives=kept, digits=digits)
    texts = [_dump(rollout) for rollout in data["rollouts"]]
    if sum(map(len, texts)) > PLAIN_LIMIT:
        texts = [json.dumps(_packed(text)) for text in texts]
    index = index_of(data)
    return safe_json(index), texts, index["first"]


def page_data(signal: Json) -> dict[str, Any]:
    """The data of a page as one JSON-ready value, ``index`` and ``rollouts``, for a page that asks a server for it."""
    data = viewer_data(signal)
    return {"index": index_of(data), "rollouts": data["rollouts"]}


def viewer_data(signal: Json, *, alternatives: int = 5, digits: int = 4) -> dict[str, Any]:
    """Everything the viewer draws, as JSON-ready data.

    Args:
        alternatives: most alternatives per token to keep, of either side.
        digits: decimals of KL and entropies.
    """
    rollouts, labels = read_page(signal), context_labels(signal)
    own = {str(row["name"]): row for row in signal.get("contexts") or []}
    more = {name: {key: own[name][key] for key in CONTEXT_FACTS if key in own.get(name, {})} for name in labels}
    return {
        "kind": str(signal.get("kind", "signal")),
        "model": str(signal.get("model", "")),
        "temperature": number(signal.get("temperature")),
        "unit": str(signal.get("unit", "nats")),
        "definition": str(signal.get("definition", "")),
        "percentile": PERCENTILE,
        "limit": limit_of(rollouts),
        "alternatives": alternatives,
        "digits": digits,
        "contexts": [{"name": name, "label": label, **more[name]} for name, label in labels.items()],
        "what_if": what_ifs(signal.get("counterfactual") or {}),
        "rollouts": [_rollout(rollout, list(labels), alternatives, digits) for rollout in rollouts],
    }


def what_ifs(counterfactual: Json) -> dict[str, str]:
    """ "ROLLOUT CONTEXT TOKEN" -> the success of its continuations, in words.

    Args:
        counterfactual: by context, as in signal.json.
    """

    def success(rate: Json) -> str:
        left_out = f", {rate['undecided']} undecided" if rate.get("undecided") else ""
        if rate["value"] is None or math.isnan(rate["value"]):
            return f"undefined{left_out}"
        bounds = f"[{percent(rate['low'], unit=False)}, {percent(rate['high'], unit=False)}]"
        return f"{percent(rate['value'])} {bounds}{left_out}"

    return {
        f"{row['rollout_id']} {row['context']} {row['position']}": f"{success(row['as_written'])} as written, "
        f"{success(row['replaced'])} with {row['replacement'].strip() or 'white space'} ({row['num_samples']} each)"
        for found in counterfactual.values()
        for row in found["rows"]
    }


def index_of(data: Json) -> dict[str, Any]:
    """``viewer_data`` with a line per rollout in the place of the rollouts, and which is shown first: one with a single
    wrong step, where designs differ most."""
    ranks = [(not one["contexts"], one["case"] != "one_wrong_step") for one in data["rollouts"]]
    first = min(range(len(ranks)), key=ranks.__getitem__, default=0)
    return {**data, "rollouts": [_line(rollout) for rollout in data["rollouts"]], "first": first}


# ---------------------------------------------------------------------------------------------------------------------
# Size


def _detail(rollouts: Sequence[ScoredCompletion], names: Sequence[str]) -> tuple[int, int]:
    """(alternatives to keep, decimals of KL and entropies) that fit, judged by a few rollouts."""
    tops = [top for rollout in rollouts for t in rollout.tables.values() for top in (t.top_student, t.top_teacher)]
    most = max((len(row or ()) for top in tops for row in top or ()), default=0)
    counts = [kept for kept in sorted({most, 5, 3, 2, 1, 0}, reverse=True) if kept <= most]
    details = [*((kept, 4) for kept in counts), (0, 3)]
    sample = rollouts[:: math.ceil(len(rollouts) / 4)] if rollouts else []
    size, sampled = _num_values(rollouts), _num_values(sample) or 1
    budget = max(LEAST_BUDGET, BYTES_PER_VALUE * size)
    for kept, digits in details:
        texts = [_dump(_rollout(rollout, names, kept, digits)) for rollout in sample]
        factor = size / sampled
        if factor * sum(map(len, texts)) <= PLAIN_LIMIT or factor * sum(len(_packed(t)) for t in texts) <= budget:
            return kept, digits
    return details[-1]


def _num_values(rollouts: Sequence[ScoredCompletion]) -> int:
    return sum(len(rollout.tokens) * max(1, len(rollout.tables)) for rollout in rollouts)


def _dump(rollout: Json) -> str:
    return escape_json(json.dumps(rollout, ensure_ascii=True, separators=(",", ":"), allow_nan=False))


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


# ---------------------------------------------------------------------------------------------------------------------
# One rollout


def _line(rollout: Json) -> dict[str, Any]:
    series = [[value or 0.0 for value in context["a"]] for context in rollout["contexts"]]
    return {
        **{key: rollout[key] for key in ("id", "case", "verdict", "question")},
        "tokens": len(rollout["pieces"]),
        "contexts": [context["context"] for context in rollout["contexts"]],
        "strongest": max((abs(value) for values in series for value in values), default=0),
        "bars": [_bars(values) for values in series],
    }


def _bars(values: Sequence[float]) -> list[float]:
    """The strongest A of each of at most NUM_BARS stretches."""
    count = min(NUM_BARS, len(values))
    edges = [bar * len(values) // count for bar in range(count + 1)] if count else []
    return [round(max(values[start:end], key=abs), 3) for start, end in pairwise(edges)]


def _rollout(scored: ScoredCompletion, names: Sequence[str], alternatives: int, digits: int) -> dict[str, Any]:
    stretches = list(scored.stretches())
    starts = [step.start for step, _, _ in stretches]
    contexts = []
    for table in scored.tables.values():
        found = align_feedback(scored.text, table.text)
        rows = {"rows": _beside(found, starts) if found else [], "alignment": _findings(found) if found else None}
        contexts.append(_context(table, names.index(table.context), alternatives, digits) | rows)
    out: dict[str, Any] = {
        "id": scored.rollout_id,
        "case": scored.case,
        "verdict": scored.verdict,
        "question": scored.question,
        "expected": scored.expected_answer,
        "reference": scored.reference,
        "pieces": scored.tokens,
        "gaps": scored.gaps(),
        "ids": list(scored.token_ids),
        "unknown": scored.unknown_tokens,
        "special": list(scored.special),
        "joined": sorted(scored.joined()),
        "steps": [[step.label, step.status, first, last] for step, first, last in stretches],
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


def _context(table: TokenTable, context: int, alternatives: int, digits: int) -> dict[str, Any]:
    ratio, student, teacher = (
        np.round(column, DIGITS) for column in (table.log_ratio, table.student_log_prob, table.teacher_log_prob)
    )
    rest = (teacher - student - ratio) * 1e6
    return {
        "context": context,
        "text": table.text,
        "prompt": table.prompt,
        "dropped": table.dropped_tokens,
        "case": table.critic_case,
        "first_error": table.first_error,
        "a": _listed(ratio, DIGITS),
        "student": _listed(student, DIGITS),
        "rest": [None if math.isnan(value) else round(value) for value in rest.tolist()],
        "kl": _listed(table.forward_kl, digits),
        "student_entropy": _listed(table.student_entropy, digits),
        "entropy": _listed(table.teacher_entropy, digits),
        "top_student": _alternatives(table.top_student, alternatives),
        "top": _alternatives(table.top_teacher, alternatives),
    }


def _listed(column: np.ndarray, digits: int) -> list[float | None]:
    """Numbers for JSON: rounded, undefined ones null."""
    return [round(value, digits) + 0.0 if math.isfinite(value) else None for value in column.tolist()]


def _alternatives(top: Alternatives | None, kept: int) -> list[list[Any]] | None:
    """Per token a flat list text, log-probability, text, ...; None when there are none or none are kept."""
    if top is None or kept == 0:
        return None
    likely = [[(text, value) for text, value in (row or ())[:kept] if value >= LEAST_ALTERNATIVE] for row in top]
    return [[part for text, value in row for part in (text, round(value, 3) + 0.0)] for row in likely]


def _beside(found: Alignment, starts: Sequence[int]) -> list[list[Any]]:
    """[shown step beside it, copied | edited | missing | added, label, start, end] in reading order: the
    span is that of the feedback's step, null where it has none.

    Args:
        starts: first character of each step that the viewer shows.
    """
    rows: list[list[Any]] = []
    place = 0
    for match in found.matches:
        if match.solver is not None:
            place = max(place, bisect_right(starts, found.solver_steps[match.solver].start) - 1)
        step = found.critique_steps[match.critique] if match.critique is not None else None
        rows.append([place, match.status, *([step.label, step.start, step.end] if step else ["", None, None])])
    return rows


def _findings(found: Alignment) -> dict[str, Any]:
    share = found.verbatim_share
    return {
        **{key: getattr(found, key) for key in ("copied", "edited", "missing", "added")},
        "verbatim_share": None if math.isnan(share) else round(share, 4),
        "wrong_text_repeated": found.wrong_text_repeated,
        "full_solution": found.full_solution,
    }
