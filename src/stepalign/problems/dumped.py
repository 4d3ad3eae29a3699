"""An attempt as another trainer has written it down: its prompt, its tokens and their numbers, read with care.

A dump holds outside text. Prompts come as messages, or as the text that a chat template made of them, with or without
its control tokens; numbers come for whole sequences, padded or not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepalign.domains.math.extraction import extract_answer
from stepalign.domains.math.grade import Grade
from stepalign.domains.math.thinking import opened_thought
from stepalign.problems.columns import is_chat
from stepalign.problems.rows import cell_text
from stepalign.problems.sets import problem_id
from stepalign.records import Attempt, Problem

Values = Mapping[str, Sequence[float | None]]


class Unreadable(ValueError):  # noqa: N818 - no error of a user's
    """Why a row gives no attempt, in few words that are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dumped:
    """One attempt of a dump. Tokens and their numbers are there only where the dump holds them."""

    question: str = ""
    """"" where the dump holds the prompt as ids alone."""
    text: str = ""
    """The completion, verbatim."""
    system: str = ""
    opened: str = ""
    """The mark of a thought that the prompt opens at its end."""
    answer: str = ""
    reference: str = ""
    name: str = ""
    step: int = 0
    score: float = math.nan
    truncated: bool = False
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    """Of the completion: from the first sampled token to the last."""
    sampled: Sequence[bool] = ()
    """False for tokens that an environment wrote; empty where all are sampled."""
    pieces: Sequence[str] = ()
    """The text of each token, where the dump has text in place of ids."""
    values: Values = field(default_factory=dict)
    """Names of ``VALUES`` -> one number for each token of the completion."""
    contexts: Mapping[str, str] = field(default_factory=dict)

    def attempt(self) -> Attempt:
        marked = extract_answer(self.answer or self.reference)
        shown = self.answer if marked is not None and self.answer != marked else ""
        problem = Problem(
            problem_id=problem_id(self.question),
            question=self.question,
            answer=(marked or self.answer).strip(),
            reference=self.reference or shown or None,
        )
        text = self.opened + self.text
        grade = Grade(score=self.score, answer=extract_answer(text))
        return Attempt(rollout_id=self.name, problem=problem, text=text, grade=grade, truncated=self.truncated)


VALUES = {
    "sampler_log_prob": "log p of the sampler",
    "trainer_log_prob": "log p of the trainer",
    "teacher_log_prob": "log p of the teacher",
    "log_ratio": "log p, trainer - sampler",
    "teacher_ratio": "log p, teacher - sampler",
    "advantage": "advantage",
    "mismatch_kl": "mismatch KL",
    "entropy": "entropy",
}
"""Numbers that a dump may hold for each token -> how a page calls them."""


# ---------------------------------------------------------------------------------------------------------------------
# Prompts

_CONTROL = re.compile(
    r"(?P<role><\|im_start\|>(?P<a>\w+)\n?|<\|start_header_id\|>(?P<b>\w+)<\|end_header_id\|>\n*"
    r"|<start_of_turn>(?P<c>\w+)\n?|<[|｜](?P<d>system|user|assistant|System|User|Assistant)[|｜]>\n?"
    r"|(?P<inst>\[INST\]\s?)|(?P<tsni>\s?\[/INST\]))"
)
_ENDS = re.compile(
    r"\s*(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>|</s>|<｜end▁of▁sentence｜>)\s*$"
)
_BEGIN = re.compile(r"^(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)+")
_LLAMA_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.S)
_THOUGHT = re.compile(r"^<think>\s*(?:</think>)?\s*")
"""The mark of a thought that a template opens for the solver."""
_BARE = re.compile(
    r"\s*(?:system\n+(?P<system>.*?)\n*(?=user\n))?user\n+(?P<question>.*?)\n*(?:assistant|model)\n+"
    r"(?:<think>\s*(?:</think>\s*)?)?",
    re.S,
)
"""A chat template's turns after their control tokens were dropped (``skip_special_tokens=True``)."""


def split_prompt(text: str) -> tuple[str, str]:
    """(system message, question) of a prompt as a chat template wrote it, control tokens kept or dropped.

    A text that is no such prompt is the question itself.

    Raises:
        Unreadable: the prompt holds several turns.
    """
    marks = list(_CONTROL.finditer(text))
    if marks and _role(marks[-1]) == "assistant":
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        turns = [(_role(mark), text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
        turns = [("system", _BEGIN.sub("", text[: marks[0].start()])), *turns]
        said = [(role, _ENDS.sub("", words).strip()) for role, words in turns]
        said = [(role, words) for role, words in said if words and (role != "assistant" or _THOUGHT.sub("", words))]
        system, question = read_turns(said)
        inner = _LLAMA_SYSTEM.match(question)
        return (inner[1].strip(), question[inner.end() :].strip()) if inner else (system, question)
    bare = _BARE.fullmatch(text)
    if bare is None:
        return "", text.strip()
    if re.search(r"\n(?:assistant|model)\n", bare["question"]):
        raise Unreadable("several turns in the prompt")
    return (bare["system"] or "").strip(), bare["question"].strip()


def _role(mark: re.Match[str]) -> str:
    if mark["inst"] or mark["tsni"]:
        return "user" if mark["inst"] else "assistant"
    role = next(mark[name] for name in "abcd" if mark[name]).lower()
    return "assistant" if role == "model" else role


def read_turns(turns: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """(system message, question) of turns (role, words). Raises Unreadable for any but one question."""
    asked = [words for role, words in turns if role == "user"]
    if len(asked) != 1 or any(role not in ("system", "user", "developer") for role, _ in turns):
        raise Unreadable("several turns in the prompt" if asked else "no question")
    return "\n".join(words for role, words in turns if role != "user"), asked[0]


def words_of(message: Mapping[str, Any]) -> str:
    """The text of a message, a thought that is kept apart in front of it."""
    content, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return (f"<think>\n{thought}\n</think>\n\n" if isinstance(thought, str) and thought else "") + str(content or "")


def read_prompt(cell: Any) -> dict[str, Any]:
    """The fields of a prompt: messages, or the text that a chat template made of them."""
    if is_chat(cell):
        system, question = read_turns([(str(message["role"]), words_of(message)) for message in cell])
        return {"system": system, "question": question}
    text = cell if isinstance(cell, str) else cell_text(cell)
    system, question = split_prompt(text)
    return {"system": system, "question": question, "opened": opened_thought(text)}


def read_completion(cell: Any) -> str:
    """The text of a completion, or of the one message that it is. Raises Unreadable."""
    if isinstance(cell, str):
        return cell
    if not is_chat(cell):
        raise Unreadable("no completion")
    if [message["role"] for message in cell] != ["assistant"]:
        raise Unreadable("several turns in the completion")
    return words_of(cell[0])


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def score_of(value: Any) -> float:
    """A reward in [0, 1]; -1 and False are wrong, and a reward on another scale says nothing of the verdict."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d*)?", value):
        value = float(value)
    if not isinstance(value, bool | int | float):
        return math.nan
    return 0.0 if value == -1 else float(value) if 0 <= value <= 1 else math.nan


_VERDICT = re.compile(r"acc|correct|exact|solve|match|verif|math|answer", re.I)


def best_score(rewards: Mapping[str, Any]) -> float:
    """The reward that judges the answer: the only one, or the one whose name says so."""
    numbers = {
        name: value
        for name, value in rewards.items()
        if isinstance(value, bool | int | float) and not math.isnan(value)
    }
    named = [name for name in numbers if _VERDICT.search(name)]
    chosen = named if len(named) == 1 else list(numbers)
    return score_of(numbers[chosen[0]]) if len(chosen) == 1 else math.nan


def whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) or (isinstance(value, str) and value.isdigit()) else 0


def numbers(values: Any) -> list[float | None]:
    return [float(v) if isinstance(v, int | float) and math.isfinite(v) else None for v in values or ()]


def _minus(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def cut_tokens(ids: Sequence[int], sampled: Sequence[Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a sequence of tokens, cut into prompt and completion by the mask of its sampled tokens.

    Columns are as long as the sequence; a log-probability that is 0 everywhere is a placeholder. Ratios are derived
    where both sides are there.
    """
    mask = [bool(one) for one in sampled]
    if len(mask) != len(ids) or not any(mask):
        raise Unreadable("no sampled tokens" if len(mask) == len(ids) else "misaligned tokens")
    start, end = mask.index(True), len(mask) - mask[::-1].index(True)
    values = {name: numbers(column) for name, column in columns.items()}
    if any(column and len(column) != len(ids) for column in values.values()):
        raise Unreadable("misaligned tokens")
    values = {
        name: column[start:end]
        for name, column in values.items()
        if any(v is not None for v in column) and (any(column) or not name.endswith("log_prob"))
    }
    inner = mask[start:end]
    return {
        "prompt_ids": list(ids[:start]),
        "ids": list(ids[start:end]),
        "sampled": () if all(inner) else inner,
        "values": _with_ratios(values, inner),
    }


def _with_ratios(values: dict[str, list[float | None]], sampled: Sequence[bool]) -> Values:
    """The numbers of sampled tokens, and the differences of log-probabilities that they give."""
    found = {
        name: [v if own else None for v, own in zip(column, sampled, strict=True)] for name, column in values.items()
    }
    if before := found.get("sampler_log_prob"):
        for name, side in (("log_ratio", "trainer_log_prob"), ("teacher_ratio", "teacher_log_prob")):
            if side in found and name not in found:
                found[name] = _minus(found[side], before)
    return {name: found[name] for name in VALUES if name in found}
