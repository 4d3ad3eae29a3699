"""The nouns of stepalign: plain frozen records that every other module passes around.

How they follow each other, in one line::

    Problem -> Completion -> Attempt -> Critique -> Context -> Sample -> (optimizer step)

An ``Attempt`` is text with a grade: critics, designs, steps and pages read it. A ``Completion`` is token ids with their
log-probabilities: the trainer reads it. A ``Rollout`` is one of each. Ids are never re-encoded from text: a completion
is sampled once and its ids are scored verbatim under every context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stepalign.domains.math.grade import Grade, Verdict

FinishReason = Literal["stop", "length"]
CritiqueStatus = Literal["ok", "malformed", "failed"]
StepStatus = Literal["right", "wrong", "after_error", "unknown"]
Role = Literal["solver", "tool", "user"]
CritiqueForm = Literal["trace", "paraphrase", "hint", "comment", "own", "second_turn", "turns", "edits", "edit"]
"""The text that a critic writes: the corrected trace in the solver's words, the same in other words, the place of the
first error without its correction, a comment in words of its own; "own" is a trace that the solver itself writes, and
"second_turn" a trace with the solver's next attempt behind it; "turns" is a trace for each turn of the solver; "edits"
is a script that a program applies to the attempt, which makes it a trace; "edit" is the attempt with its wrong
sentences written anew."""


UNGRADED = Grade(score=float("nan"), answer=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A question with a known answer."""

    problem_id: str
    """Stable: a hash of the question's text."""
    question: str
    answer: str
    """The expected final answer, as text."""
    reference: str | None = None
    """A reference solution (chain of thought), shown to the self-teacher under the RefSol condition."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown_answer(self) -> str:
        """The answer for critics, users and contexts: without the tests that are hidden."""
        return str(self.metadata.get("shown_answer", self.answer))


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a rollout that has several: its author, its text, and its tokens in the completion."""

    role: Role
    """Only turns of the solver are trained on."""
    text: str
    """Of an environment the message alone, without the words of the chat template around it."""
    start: int
    end: int
    """Half-open range of token indices. The ranges of all turns cover the completion."""
    dropped_tokens: int = 0
    """Tokens of a message that were cut at ``environment.max_reply_length``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """An answer to a problem, as text, with its grade."""

    rollout_id: str
    problem: Problem
    text: str
    """Decoded without special tokens but for those that mark thinking."""
    grade: Grade = UNGRADED
    truncated: bool = False
    """Whether it reached the length limit before its end."""
    turns: tuple[Turn, ...] = ()
    """In their order, where an environment replied; empty for a single turn."""

    @property
    def transcript(self) -> str:
        """The text as somebody else reads it: of several turns each one behind the name of its author."""
        return "\n\n".join(f"[{turn.role}]\n{turn.text.strip()}" for turn in self.turns) or self.text

    @property
    def answer(self) -> str | None:
        """The extracted final answer, or None when there is none."""
        return self.grade.answer

    @property
    def verdict(self) -> Verdict:
        return self.grade.verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The tokens that follow one prompt. Every tuple has one entry per token."""

    ids: tuple[int, ...]
    """Token ids, the end-of-text id included when the model stopped by itself."""
    log_probs: tuple[float, ...]
    """Log-probability, in nats, of each sampled id under the distribution it was drawn from (sampling temperature); NaN
    for tokens that were not sampled."""
    finish_reason: FinishReason
    policy_version: int
    """Number of optimizer steps behind the weights that drew it; of the oldest ones where there were several."""
    sampled_mask: tuple[bool, ...] = ()
    """True for tokens that the solver sampled, False for those that an environment wrote, which are never trained on.
    Empty, the default: all are sampled."""
    turns: tuple[Turn, ...] = ()
    """The turns, where there are several."""
    server: str = field(default="", compare=False)
    """The rollout server that drew it (its last turn); no file has it."""

    def __post_init__(self) -> None:
        if not self.sampled_mask:
            object.__setattr__(self, "sampled_mask", (True,) * len(self.ids))
        if len(self.sampled_mask) != len(self.ids):
            raise ValueError(f"misaligned completion: {len(self.ids)} ids, mask of {len(self.sampled_mask)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a trace: a half-open span of characters. The spans of a text join to exactly that text."""

    label: str
    """"1", "2", ..., "answer", or "" for text before the first step."""
    start: int
    end: int
    text: str = field(default="", compare=False)
    """The characters of the span."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A graded completion: the attempt that critics read and the tokens that train."""

    attempt: Attempt
    completion: Completion
    step: int
    """Optimizer step at whose start it was sampled."""
    group_index: int
    """Position in the group of completions of the same problem."""

    @property
    def rollout_id(self) -> str:
        return self.attempt.rollout_id

    @property
    def problem(self) -> Problem:
        return self.attempt.problem

    @property
    def problem_id(self) -> str:
        return self.attempt.problem.problem_id

    @property
    def text(self) -> str:
        return self.attempt.text

    @property
    def answer(self) -> str | None:
        return self.attempt.answer

    @property
    def verdict(self) -> Verdict:
        return self.attempt.verdict

    @property
    def reward(self) -> float:
        """The score of the grade, in [0, 1]; NaN undecided."""
        return self.attempt.grade.score


@dataclass(frozen=True, kw_only=True, slots=True)
class Critique:
    """A critic's reply to one attempt."""

    rollout_id: str
    critic: str
    """Name of the critic: "programmatic:arithmetic", or the model served at the endpoint."""
    status: CritiqueStatus
    text: str
    """The usable critique without any thinking part: a step-tagged trace in the forms "trace" and "paraphrase". Empty
    unless status is "ok"."""
    raw: str = ""
    """The reply as it came."""
    reason: str = ""
    """Why it is malformed or failed."""
    unpaid: bool = False
    """Not asked for any more, because the critic's budget is spent."""
    truth: bool | None = None
    """Whether ``first_error`` is the true one: True from a program that knows, False from one that is faulty by intent
    or is the solver itself, None where nothing is known. In files the beginning of ``critic`` says it."""
    case: str = ""
    """A all right, B right answer with a missing reason, C incomplete, D wrong, F full solution instead; "" unknown."""
    first_error: str = ""
    """Label of the solver's first wrong step, where known."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    attempts: int = 0
    """HTTP attempts paid for; 0 for a programmatic critic or a cached reply."""
    cached: bool = False
    prompt_hash: str = ""
    """Hash of the critic's prompt template."""
    retries: int = 0
    """How often it was asked for again because of a finding; tokens, seconds and attempts count every try."""
    findings: tuple[str, ...] = ()
    """Its faults: names of ``feedback/findings.py``."""
    policy: str = ""
    """The treatment of that: "use", "mask" or "fall_back"; "" where no policy was applied."""
    decided_by: str = ""
    """The finding that decided it, "" where none did."""
    form: CritiqueForm = "trace"
    """The form that the critic was asked for."""
    turns: tuple[str, ...] = ()
    """In the form "turns": the text for each turn of the solver, "" where there is none; ``text`` has them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The text that the self-teacher sees beyond the question, for one rollout."""

    rollout_id: str
    design: str
    text: str | None
    """None where there is nothing to show; the sample then carries no distillation term."""
    masked: str = ""
    """Why there is no text, counted in the metrics; "" when there is one, or when the design needs none."""
    introduction: str = ""
    """The sentence in front of the text, where the self-teacher's prompt has a place for it."""
    turn: int | None = None
    """Place of the one turn of the rollout that it teaches, among all turns; None: it teaches the whole."""


ServedTop = tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...], tuple[float, ...]]
"""Of each completion token: ids and log-probabilities of a served teacher's likeliest tokens, and that of the token
taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion ready for the trainer, which is blind to the condition that made it.

    Both prompts end in the same generation suffix and are followed by the same ``completion_ids``.
    """

    rollout_id: str
    student_prompt_ids: tuple[int, ...]
    teacher_prompt_ids: tuple[int, ...] | None
    """None where no self-teacher is scored."""
    completion_ids: tuple[int, ...]
    sampler_log_probs: tuple[float, ...]
    loss_mask: tuple[bool, ...]
    """True for completion tokens that train."""
    advantage: float
    """Group-normalised reward, used by the policy-gradient term only."""
    distillation_weight: float
    policy_weight: float
    magnitude_mixing: float = 0.0
    """The self-teacher's share in the size of each token's advantage, in [-1, 1]; its sign stays the verdict's. Below 0
    the self-teacher's signal is turned around."""
    entropy_damping: float = 0.0
    """Each token's distillation weight is multiplied by exp(-damping * entropy of the self-teacher)."""
    contrast_prompt_ids: tuple[int, ...] | None = None
    """A second prompt of the self-teacher: the size of an advantage is the log-ratio between the two of them, in the
    place of the one between self-teacher and student."""
    served: ServedTop | None = None
    """The words of a teacher behind servers, which is not scored here."""
    probe: tuple[int, int] | None = None
    """(position of the first wrong token, id of the right one there), where the truth is known. Only watched."""

    def __post_init__(self) -> None:
        lengths = {len(self.completion_ids), len(self.sampler_log_probs), len(self.loss_mask)}
        if len(lengths) != 1:
            raise ValueError(f"misaligned sample {self.rollout_id}: lengths {sorted(lengths)}")
        if (self.distillation_weight or self.magnitude_mixing) and self.teacher_prompt_ids is None:
            raise ValueError(f"sample {self.rollout_id} needs a self-teacher but has no prompt for it")


def to_json(record: Any) -> dict[str, Any]:
    """A record as JSON-ready plain data (nested records become dictionaries)."""
    if isinstance(record, Rollout):
        return _rollout_row(record)
    row = dataclasses.asdict(record)
    row.pop("unpaid", None)  # a run stops there: no such critique is written
    row.pop("truth", None)
    for name, nothing in (("turns", ()), ("turn", None)):  # left out where they say nothing
        if name in row and row[name] == nothing:
            del row[name]
    return row


def critique_from_json(row: Mapping[str, Any]) -> Critique:
    """The critique of a line of critiques.jsonl."""
    fields = {name: value for name, value in row.items() if name != "record_step"}
    fields["turns"] = tuple(fields.get("turns", ()))
    kind = row["critic"].partition(":")[0]
    return Critique(**fields, truth={"programmatic": True, "faulty": False, "own": False}.get(kind))


def _rollout_row(rollout: Rollout) -> dict[str, Any]:
    """A line of rollouts.jsonl. The problem is named, not repeated; mask, turns and detail are left out where
    they say nothing."""
    completion = dataclasses.asdict(rollout.completion)
    turns = [{**turn, "trained": turn["role"] == "solver"} for turn in completion.pop("turns")]
    del completion["server"]
    if all(rollout.completion.sampled_mask):
        del completion["sampled_mask"]
    detail = rollout.attempt.grade.detail
    return {
        "rollout_id": rollout.rollout_id,
        "problem_id": rollout.problem_id,
        "step": rollout.step,
        "group_index": rollout.group_index,
        "completion": completion,
        **({"turns": turns} if turns else {}),
        "text": rollout.text,
        "answer": rollout.answer,
        "verdict": rollout.verdict,
        "reward": rollout.reward,
        **({"detail": detail} if detail else {}),
        **({"judged": list(judged)} if (judged := rollout.attempt.grade.judged) else {}),
    }


def rollout_from_json(row: Mapping[str, Any], problem: Problem) -> Rollout:
    """The rollout of a line of rollouts.jsonl; null is NaN."""
    completion, reward = row["completion"], row["reward"]
    known = {field.name for field in dataclasses.fields(Turn)}
    turns = tuple(Turn(**{key: turn[key] for key in known & turn.keys()}) for turn in row.get("turns", ()))
    grade = Grade(
        score=float("nan") if reward is None else reward,
        answer=row["answer"],
        detail=row.get("detail", ""),
        judged=tuple(row.get("judged", ())),
    )
    return Rollout(
        attempt=Attempt(
            rollout_id=row["rollout_id"],
            problem=problem,
            text=row["text"],
            grade=grade,
            truncated=completion["finish_reason"] == "length",
            turns=turns,
        ),
        completion=Completion(
            ids=tuple(completion["ids"]),
            log_probs=tuple(float("nan") if p is None else p for p in completion["log_probs"]),
            finish_reason=completion["finish_reason"],
            policy_version=completion["policy_version"],
            sampled_mask=tuple(completion.get("sampled_mask", ())),
            turns=turns,
        ),
        step=row["step"],
        group_index=row["group_index"],
    )
