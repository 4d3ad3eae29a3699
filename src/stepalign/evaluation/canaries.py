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
