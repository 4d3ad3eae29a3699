"""Signs of decay in the text of a policy: repetition, loss of doubt, loss of diversity. Pure.

Sources: repetition as the compression ratio of the tail, with 10 as the mark, from the study of length inflation in
on-policy distillation (arXiv 2604.08527); the loss of hedge words under rich contexts from Kim et al. (arXiv
2603.24472); the loss of diversity behind a stable entropy from Nicolicioiu et al.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence

TAIL_BYTES = 4096
REPETITIVE = 10.0
"""Above this compression ratio of its tail a text repeats itself; prose and derivations stay below 5."""
HEDGES = (
    "wait", "hmm", "maybe", "perhaps", "actually", "alternatively", "probably", "might", "possibly", "unsure",
    "not sure", "let me check", "let me verify", "double-check", "double check", "hold on",
)  # fmt: skip
_HEDGE = re.compile(rf"\b(?:{'|'.join(re.escape(words) for words in HEDGES)})\b", re.IGNORECASE)


def tail_compression(text: str) -> float:
    """How many times deflate shortens the last 4,096 bytes of a text; NaN for an empty one.

    Without zlib's header and checksum: on a short text they would hide a loop.
    """
    tail = text.encode("utf-8", "replace")[-TAIL_BYTES:]
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return len(tail) / len(deflate.compress(tail) + deflate.flush()) if tail else math.nan


def is_repetitive(text: str) -> bool:
    return tail_compression(text) > REPETITIVE


def hedge_words(text: str) -> int:
    """How often a text voices doubt ("wait", "maybe", "let me check", ...). English only."""
    return len(_HEDGE.findall(text))


def distinct_answers(answers: Sequence[str | None]) -> float:
    """Different answers per completion of one problem; None is no answer. NaN for fewer than two completions."""
    return len({answer for answer in answers if answer is not None}) / len(answers) if len(answers) > 1 else math.nan


def distinct_ngrams(texts: Sequence[str], size: int = 2) -> float:
    """Different n-grams of words over all n-grams, in the completions of one problem together (distinct-n, Li et al.,
    arXiv 1510.03055). NaN for fewer than two completions, or without an n-gram."""
    words = [text.split() for text in texts]
    grams = [tuple(some[at : at + size]) for some in words for at in range(len(some) - size + 1)]
    return len(set(grams)) / len(grams) if len(texts) > 1 and grams else math.nan


_MENTION = re.compile(
    r"\b(?:the|this|that|your|my|given|provided) (?:feedback|critique|critic|hint|reference(?: solution)?)\b"
    r"|\b(?:my|your|the) (?:previous|earlier|first|last) attempt\b"
    r"|\b(?:given|provided|correct|right|reference) (?:solution|answer) (?:is|was|says|shows|above|given)\b"
    r"|\baccording to the (?:feedback|critique|solution|answer)\b",
    re.IGNORECASE,
)


def mentions_feedback(text: str) -> bool:
    """Whether a completion speaks of feedback, a reference or an earlier attempt, which its prompt does not hold: the
    student repeats what only its self-teacher was shown. English only."""
    return _MENTION.search(text) is not None


def overconfidence(problems: Sequence[tuple[Sequence[str | None], Sequence[str]]]) -> float:
    """Mean confidence of the majority answer minus its accuracy, over problems of (answers, verdicts).

    Confidence is the share of a problem's completions that give the most frequent answer, the first of several; 0 is
    calibrated in the mean. NaN without an answer whose verdict is decided.
    """
    gaps = []
    for answers, verdicts in problems:
        given = [answer for answer in answers if answer is not None]
        if not given:
            continue
        majority = max(dict.fromkeys(given), key=given.count)
        verdict = verdicts[list(answers).index(majority)]
        if verdict != "undecided":
            gaps.append(given.count(majority) / len(answers) - (verdict == "correct"))
    return sum(gaps) / len(gaps) if gaps else math.nan
