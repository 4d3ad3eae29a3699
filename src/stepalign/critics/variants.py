"""Critics around other critics: turn by turn, two that must agree, one that remembers, one that writes edit scripts."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepalign.critics import Critic
from stepalign.domains.math.answers import canonical_answer
from stepalign.feedback.alignment import align
from stepalign.feedback.edits import apply_script, numbered
from stepalign.outside import parse_json
from stepalign.records import UNGRADED, Attempt, Critique
from stepalign.storage.jsonl import whole_lines


def _costs(found: Sequence[Critique]) -> dict[str, Any]:
    """The costs of several critiques as those of one."""
    return {
        "unpaid": any(one.unpaid for one in found),
        "prompt_tokens": sum(one.prompt_tokens for one in found),
        "completion_tokens": sum(one.completion_tokens for one in found),
        "seconds": max(one.seconds for one in found),
        "attempts": sum(one.attempts for one in found),
        "cached": all(one.cached for one in found),
    }


@dataclass(slots=True)
class Around:
    """Another critic's name, ledger and end."""

    critic: Critic
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.critic.name

    @property
    def ledger(self) -> Any:
        return getattr(self.critic, "ledger", None)

    def close(self) -> None:
        self.critic.close()


@dataclass(slots=True)
class TurnByTurn(Around):
    """Asks another critic about each turn of the solver, with the conversation before it behind the question."""

    reads_questions: bool
    """Whether the critic reads questions as text; a program parses them, and gets them as they are."""

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`. A turn without a usable critique has an empty text; without any the
        critique is that of the first turn. A complaint is about the turns without one."""
        turns = self._turns(attempt)
        before = earlier.turns if earlier else ("",) * len(turns)
        complaints = [complaint if earlier and not text else "" for text in before]
        pairs = zip(turns, complaints, strict=True)
        found = await asyncio.gather(*(self.critic.critique(turn, complaint=words) for turn, words in pairs))
        texts = tuple(one.text if one.status == "ok" else "" for one in found)
        first = next((one for one in found if one.status == "ok"), found[0])
        return replace(
            first,
            rollout_id=attempt.rollout_id,
            text="\n\n".join(filter(None, texts)),
            turns=texts,
            form="turns",
            first_error="",
            **_costs(found),
        )

    def _turns(self, attempt: Attempt) -> list[Attempt]:
        """Each turn of the solver as an attempt of its own; only the last one has the grade."""
        places = [place for place, turn in enumerate(attempt.turns) if turn.role == "solver"]
        found: list[Attempt] = []
        for place in places:
            before, problem = replace(attempt, turns=attempt.turns[:place]), attempt.problem
            if place and self.reads_questions:
                talk = f"{problem.question}\n\nThe conversation so far:\n\n{before.transcript}"
                problem = replace(problem, question=talk)
            grade = attempt.grade if place == places[-1] else UNGRADED
            text, name = attempt.turns[place].text, f"{attempt.rollout_id}-t{place}"
            found.append(replace(attempt, rollout_id=name, problem=problem, text=text, grade=grade, turns=()))
        return found or [attempt]


@dataclass(slots=True)
class Agreeing:
    """Two critics whose corrected traces must agree on the first wrong step and on the answer; the first one's is used.

    Where they do not, or one has none, there is no critique, and the reason is counted.
    """

    first: Critic
    second: Critic
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.first.name

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`; a complaint goes to the first critic."""
        found = await asyncio.gather(
            self.first.critique(attempt, earlier=earlier, complaint=complaint), self.second.critique(attempt)
        )
        reason = next((f"{one.critic}: {one.reason}" for one in found if one.status != "ok"), "")
        if not reason:
            (place, answer), (other_place, other_answer) = (self._reading(attempt, one) for one in found)
            if answer != other_answer:
                reason = "two critics disagree on the answer"
            elif place != other_place:
                reason = "two critics disagree on the first wrong step"
        joint = replace(found[0], **_costs(found))
        return replace(joint, status="failed", text="", reason=reason) if reason else joint

    @staticmethod
    def _reading(attempt: Attempt, critique: Critique) -> tuple[str, str | None]:
        """The label of the first wrong step, known to a program or found in the text, and the answer."""
        found = align(attempt, critique)
        place = critique.first_error if critique.form == "paraphrase" else found.first_error_label
        return place, None if found.critique_answer is None else canonical_answer(found.critique_answer)

    @property
    def ledger(self) -> Any:
        """Both book in one."""
        return getattr(self.first, "ledger", None) or getattr(self.second, "ledger", None)

    def close(self) -> None:
        self.first.close()
        self.second.close()


@dataclass(slots=True)
class EditScripts(Around):
    """Asks another critic for an edit script and applies it to the attempt: what it does not name stays verbatim."""

    numbers: bool
    """Whether the critic is shown the attempt with its steps numbered; a program reads the attempt itself."""

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`."""
        shown = replace(attempt, text=numbered(attempt.text), turns=()) if self.numbers else attempt
        found = replace(await self.critic.critique(shown, earlier=earlier, complaint=complaint), form="trace")
        if found.status != "ok":
            return found
        made = apply_script(attempt.text, found.text)
        return replace(found, status=made.status, text=made.text, reason=made.reason, raw=found.raw or found.text)


@dataclass(slots=True)
class Remembering(Around):
    """Shows a served critic its last usable critiques of the same problem, behind the question.

    They are read from the records of the run, so that a resumed run shows what an uninterrupted one does; being part of
    the request they are part of a reply's key in the cache. Attempts of one step do not see each other's.
    """

    count: int
    folder: Path
    """Of the run."""
    ahead: int = 0
    """Steps that completions are drawn early: critiques of so many steps more are not shown."""
    _texts: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    """By problem: step and text of its critiques, in the order of the records."""
    _problems: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Problem and step of each rollout."""
    _read: dict[str, int] = field(default_factory=lambda: {"rollouts": 0, "critiques": 0})
    """Bytes of each file that are known."""

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        """See :class:`stepalign.critics.Critic`."""
        step = re.match(r"s(\d+)-", attempt.rollout_id)
        before = self._before(attempt.problem.problem_id, int(step[1]) - self.ahead) if step else []
        if before:
            texts = "\n\n".join(f"[{place}]\n{text}" for place, text in enumerate(before, 1))
            question = f"{attempt.problem.question}\n\nYour critiques of earlier attempts, the latest last:\n\n{texts}"
            attempt = replace(attempt, problem=replace(attempt.problem, question=question))
        return await self.critic.critique(attempt, earlier=earlier, complaint=complaint)

    def _before(self, problem_id: str, step: int) -> list[str]:
        critiques = self._new("critiques")  # first: another thread may write both in between, rollouts first
        for row in self._new("rollouts"):
            self._problems[row["rollout_id"]] = row["problem_id"], row["step"]
        for row in critiques:
            if row["status"] == "ok":
                problem, drawn = self._problems.pop(row["rollout_id"])
                self._texts[problem].append((drawn, row["text"]))
        return [text for drawn, text in self._texts.get(problem_id, []) if drawn < step][-self.count :]

    def _new(self, name: str) -> list[dict[str, Any]]:
        lines = list(whole_lines(self.folder / f"{name}.jsonl", self._read[name]))
        self._read[name] += sum(map(len, lines))
        return [parse_json(line) for line in lines]
