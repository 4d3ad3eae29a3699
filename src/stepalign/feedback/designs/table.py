"""The tables of context designs and of conditions, and the contexts that they make."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from stepalign.errors import ConfigError
from stepalign.feedback.designs import builtin
from stepalign.feedback.designs.custom import is_own, load_own
from stepalign.feedback.designs.design import FEEDBACK, Design, Group, NothingToShow, nothing
from stepalign.records import Context, CritiqueForm, Rollout

_ATTEMPTED = "You have attempted this problem before."
_TRACE = f"{FEEDBACK.removesuffix('.')}: a trace of the solution"
_CRITIC = ("critic",)


class _Designs(dict[str, Design]):
    """The table; a name that is not in it is an error that says which are."""

    def __missing__(self, name: str) -> Design:
        raise _unknown(name, "context design", DESIGNS)


DESIGNS: dict[str, Design] = _Designs(
    {
        "none": Design(nothing, "no context", ""),
        "verdict": Design(builtin.verdict, "verdict only", f"{_ATTEMPTED} Here is whether that attempt was right."),
        "null": Design(builtin.null, "words without content", _ATTEMPTED),
        "answer": Design(builtin.answer, "final answer only", "Here is the final answer of this problem."),
        "reference": Design(
            builtin.reference, "RefSol", "Here is a reference solution of this problem.", needs=("reference",)
        ),
        "step_aligned": Design(builtin.as_written, "StepAlignFB", f"{_TRACE} in your own steps.", _CRITIC),
        "paraphrase": Design(builtin.as_written, "critique in other words", f"{_TRACE}.", _CRITIC, "paraphrase"),
        "full_repeat": Design(
            builtin.full_repeat,
            "full copy, then verdict",
            f"{_ATTEMPTED} Here is that attempt, with the verdict behind it.",
        ),
        "marked_correction": Design(
            builtin.marked_correction,
            "wrong step quoted and corrected",
            f"{FEEDBACK.removesuffix('.')}: your steps, a wrong one marked and then corrected.",
            _CRITIC,
        ),
        "no_repeat": Design(
            builtin.no_repeat,
            "verdict per step, no text",
            f"{_ATTEMPTED} Here is a verdict on each of its steps up to the first wrong one.",
            _CRITIC,
        ),
        "hint": Design(
            builtin.as_written,
            "first error named, not corrected",
            f"{_ATTEMPTED} Here is a hint about that attempt.",
            _CRITIC,
            "hint",
        ),
        "free_critique": Design(
            builtin.as_written,
            "critic's own words",
            f"{_ATTEMPTED} Here is what a reader says about that attempt.",
            _CRITIC,
            "comment",
        ),
        "edit": Design(
            builtin.edited,
            "edited text",
            f"{_ATTEMPTED} Here is your text as an editor leaves it: right sentences stay, wrong ones are new.",
            _CRITIC,
            "edit",
        ),
        "execution_trace": Design(
            builtin.execution_trace,
            "what the code did",
            f"{_ATTEMPTED} Here is what came out when the code of that attempt was run against the tests.",
            ("tests",),
        ),
        "shuffled": Design(
            builtin.shuffled, "another rollout's critique", f"{_TRACE} in your own steps.", ("critic", "other problems")
        ),
        "peer_demonstration": Design(
            builtin.peer_demonstration, "correct sibling", "Here is a right solution of this problem.", ("siblings",)
        ),
        "shortest_sibling": Design(
            builtin.shortest_sibling,
            "shortest correct sibling, for the longest wrong",
            "Here is a right solution of this problem.",
            ("siblings",),
        ),
        "majority": Design(
            builtin.majority,
            "most frequent answer's attempt",
            "Here is a solution of this problem that may be right.",
            ("siblings",),
        ),
        "self_critique": Design(
            builtin.as_written, "solver's own critique", f"{_TRACE}, as you would write it now.", _CRITIC, "own"
        ),
        "second_turn": Design(
            builtin.as_written,
            "feedback and second attempt",
            f"{FEEDBACK.removesuffix('.')}, and what you wrote after reading it.",
            _CRITIC,
            "second_turn",
        ),
        "sibling_episode": Design(
            builtin.sibling_episode,
            "correct sibling, turn by turn",
            "Here is a conversation in which this problem was solved.",
            ("siblings",),
        ),
        "episode_critique": Design(
            builtin.as_written,
            "critique of the whole conversation",
            f"{_ATTEMPTED} Here is what a reader says about the whole conversation.",
            _CRITIC,
            "comment",
        ),
        "turn_critique": Design(
            nothing, "critique of the turn", f"{_TRACE} in your own steps.", _CRITIC, "turns", builtin.turn_critique
        ),
        "hindsight": Design(
            nothing,
            "the user's next message",
            f"{_ATTEMPTED} Here is what the user said after your reply.",
            show_turn=builtin.hindsight,
        ),
        "tool_error": Design(
            nothing,
            "error output of the tool",
            f"{_ATTEMPTED} Here is how the call in that attempt failed.",
            show_turn=builtin.tool_error,
        ),
        "fixed_negative": Design(nothing, "unlikely tokens of wrong attempts punished", "", penalty=-1.0),
        "contrast": Design(
            builtin.contrast,
            "wrong and correct sibling",
            "Here are two attempts at this problem, each with its verdict behind it.",
            ("siblings",),
        ),
        "worked_example": Design(
            builtin.worked_example,
            "another problem, solved",
            "Here is another problem, followed by its solution.",
            ("other problems",),
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A design and the weights of the two terms of the loss: the training of one arm."""

    design: str
    distillation_weight: float
    policy_weight: float
    bare: bool = False
    """Whether the teacher reads what the student reads: it is another model then."""


# The paper's three by name, and distillation from another model; every design is a condition of its own as well.
CONDITIONS: dict[str, Condition] = {
    "grpo": Condition("none", 0.0, 1.0),
    "refsol": Condition("reference", 1.0, 0.0),
    "stepalign": Condition("step_aligned", 1.0, 0.0),
    "gkd": Condition("none", 1.0, 0.0, bare=True),
    **{
        name: Condition(name, float(not design.penalty), float(bool(design.penalty)))
        for name, design in DESIGNS.items()
    },
}


def find_condition(name: str) -> Condition:
    """An entry of ``CONDITIONS``, or distillation on a design of the user's own.

    Raises:
        ConfigError: unknown, with a suggestion; or a design of the user's own that breaks its contract.
    """
    if is_own(name):
        load_own(name)
        return Condition(name, 1.0, 0.0)
    return _find(CONDITIONS, name, "condition")


def find_design(name: str) -> Design:
    """An entry of ``DESIGNS``, or one of the user's own by path. Raises ConfigError as ``find_condition`` does."""
    return load_own(name) if is_own(name) else _find(DESIGNS, name, "context design")


_Entry = TypeVar("_Entry")


def _find(table: dict[str, _Entry], name: str, kind: str) -> _Entry:
    if name not in table:
        raise _unknown(name, kind, table)
    return table[name]


class UnknownDesignError(ConfigError, KeyError):
    """Also a KeyError, for the table is a dictionary."""


def _unknown(name: str, kind: str, table: dict[str, _Entry]) -> UnknownDesignError:
    close = difflib.get_close_matches(name, table, n=1)
    named = CONDITIONS.get(name)
    meant = named.design if named and kind != "condition" else close[0] if close else ""
    suggestion = f"did you mean {meant}? " if meant else ""
    hint = f"{suggestion}known: {', '.join(table)}, or a design of your own: module:function, file.py:function, X.jinja"
    return UnknownDesignError(f"unknown {kind} {name}", where="condition", hint=hint)


def check_condition(name: str, num_generations: int, problems_per_step: int = 2) -> Condition:
    """A condition that can work with so many completions per problem and problems per step.

    Raises:
        ConfigError: unknown, or every single rollout would be masked.
    """
    condition = find_condition(name)
    needs = find_design(condition.design).needs
    if num_generations < 2 and "siblings" in needs:
        shows, key = "siblings, and there are none with one completion per problem", "sampling.num_generations"
    elif problems_per_step < 2 and "other problems" in needs:
        shows, key = "something of another problem of the step, and there is none", "training.problems_per_step"
    else:
        return condition
    raise ConfigError(f"the context design {condition.design} shows {shows}", where=f"{key} = 1", hint=f"--set {key}=8")


def critique_forms(names: Iterable[str]) -> list[CritiqueForm]:
    """The forms of critiques that these designs need: each once, in their order."""
    return list(dict.fromkeys(design.form for design in map(find_design, names) if design.needs_critic))


def group_rollouts(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Indices of the rollouts of the same problem at the same step, in their order."""
    groups: dict[tuple[int, str], list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault((rollout.step, rollout.problem_id), []).append(index)
    return list(groups.values())


def make_contexts(name: str, group: Group) -> list[Context]:
    """One context per attempt of a group, or one per turn of the solver, in their order."""
    design, contexts = find_design(name), list[Context]()
    for index, attempt in enumerate(group.attempts):
        if design.show_turn is None:
            contexts.append(_make_context(name, design, group, index, None))
            continue
        places = [place for place, turn in enumerate(attempt.turns) if turn.role == "solver"] or [0]
        contexts += [_make_context(name, design, group, index, place) for place in places]
    return contexts


def _make_context(name: str, design: Design, group: Group, index: int, place: int | None) -> Context:
    made = Context(rollout_id=group.attempts[index].rollout_id, design=name, text=None, turn=place)
    try:
        if place is None or design.show_turn is None:
            text = (design.show(group, index) or "").strip()
        else:
            text = design.show_turn(group, index, place).strip()
        if not text:
            raise NothingToShow("the design shows nothing")
    except NothingToShow as reason:
        return replace(made, masked=str(reason))
    return replace(made, text=text, introduction=design.introduction)
