"""Will this feedback teach? A verdict from numbers that need no training: "go", "doubtful" or "no", with its reasons.

Every rule is a row of one table: a condition on the numbers, a sentence, and what would change it. A number that is not
defined fulfils no condition. Thresholds are those of docs/results/preflight.md, where verdicts before training stand
beside the gains after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from stepalign.evaluation.statistics import UNDEFINED, Interval

Word = Literal["go", "doubtful", "no"]
Severity = Literal["no", "doubtful", "note"]

RAISED = 0.1
"""Nats from which on a wrong token counts as raised: the noise of contexts without content is below it."""
BAND = (0.25, 0.75)
"""Pass rates at the training temperature that leave both something to learn and something to compare."""
HELPS = 0.05
"""Accuracy that a self-teacher must at least add where the student failed for training to have anything to pass on."""

SOLVES = 0.6
"""Accuracy of a self-teacher, times the share of attempts that it gets a context for. Between the arms that gained
with a "go" (0.68 and more) and those that did not (0.55 and less)."""


class Numbers:
    """Numbers by name; one that is missing is undefined."""

    def __init__(self, values: Mapping[str, Interval]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Interval:
        return self._values.get(name, UNDEFINED)

    def __call__(self, name: str) -> float:
        return self[name].value


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table."""

    name: str
    severity: Severity
    holds: Callable[[Numbers], bool]
    says: str
    """The sentence; ``{name}`` is a share in percent, ``{name:n}`` a number with its interval."""
    mend: str
    loud: bool = False
    """Whether training would teach something wrong, rather than nothing."""


def _quotes(numbers: Numbers) -> bool:
    wrong = numbers["wrong_token"]
    return wrong.value > RAISED and not wrong.low <= 0  # a single attempt has no interval, and still counts


def _fails_where_wrong(numbers: Numbers) -> bool:
    return numbers["gain_where_wrong"].high < HELPS


RULES: tuple[Rule, ...] = (
    Rule(
        "teaches_the_error",
        "no",
        _quotes,
        "the feedback raises the wrong tokens of the attempts, by {wrong_token:n} nats: training would teach the error",
        "show no wrong step, not even to refute it: critic.policies.quotes_wrong_step = mask for a corrected attempt, "
        "a prompt that forbids it for a hint, or another design",
        loud=True,
    ),
    Rule(
        "misses_errors",
        "no",
        lambda n: n("misses_error") > 0.5,
        "the critic says all is right of {misses_error} of the wrong attempts: the self-teacher copies their errors",
        "take another critic, or let it see the answer: critic.sees = answer",
        loud=True,
    ),
    Rule(
        "quotes_errors",
        "no",
        lambda n: n("quotes_wrong_step") > 0.5 and not n["wrong_token"].high < 0,
        "{quotes_wrong_step} of the critiques of wrong attempts quote the wrong step, which the self-teacher copies",
        "critic.policies.quotes_wrong_step = mask, or a prompt that forbids it",
        loud=True,
    ),
    Rule(
        "teaches_worse",
        "no",
        lambda n: n["gain"].high < 0,
        "with the context the self-teacher solves fewer problems than without it: {gain:n} points",
        "take another design; read some contexts on the page",
        loud=True,
    ),
    Rule(
        "cut",
        "no",
        lambda n: n("cut") > 0.5,
        "{cut} of the completions are cut at the length limit, before they have an answer",
        "raise sampling.max_completion_length",
    ),
    Rule(
        "not_understood",
        "no",
        lambda n: n("answered") < 0.5 and not n("cut") > 0.5,
        "only {answered} of the completions mark an answer: the solver does not understand the prompt",
        "look at completions on the page; change prompts.student, or warm the solver up with stepalign prepare",
    ),
    Rule(
        "foreign_words",
        "no",
        lambda n: n("unknown_tokens") > 0.05,
        "{unknown_tokens} of the self-teacher's prompt are words that the tokenizer does not know",
        "write prompts and contexts in words of the model",
    ),
    Rule(
        "all_right",
        "no",
        lambda n: n("pass_rate") > 0.95,
        "the solver is right in {pass_rate} of its attempts: there is next to nothing to learn",
        "choose harder problems with stepalign select",
    ),
    Rule(
        "all_wrong",
        "no",
        lambda n: n("pass_rate") < 0.05 and not n["gain_where_wrong"].low > 0,
        "the solver is right in {pass_rate} of its attempts, and the context is not shown to help it",
        "choose easier problems with stepalign select, or warm the solver up with stepalign prepare",
    ),
    Rule(
        "nothing_shown",
        "no",
        lambda n: n("covered") < 0.1,
        "only {covered} of the attempts get a context at all",
        "see the reasons below; choose a design whose material is there",
    ),
    Rule(
        "nothing_to_pass_on",
        "no",
        _fails_where_wrong,
        "where the student failed, the self-teacher with the context does not do better: {gain_where_wrong:n} points",
        "take a design that shows more of the way to the answer",
    ),
    Rule(
        "not_shown_to_help",
        "doubtful",
        lambda n: not n["gain_where_wrong"].low > 0 and not _fails_where_wrong(n),
        "it is not shown that the self-teacher does better with the context where the student failed: "
        "{gain_where_wrong:n} points",
        "look at more rollouts: --num",
    ),
    Rule(
        "often_wrong_itself",
        "doubtful",
        lambda n: n("covered") * n("self_teacher") < SOLVES and n["gain_where_wrong"].low > 0,
        "the self-teacher gets a context for {covered} of the attempts and solves {self_teacher} with it: elsewhere it "
        "teaches its own errors, or nothing",
        "a design that shows more of the way to the answer, or that has a context for every attempt",
    ),
    Rule(
        "not_at_the_error",
        "doubtful",
        lambda n: n["wrong_token"].high >= 0 and not _quotes(n),
        "the context is not shown to lower the wrong tokens of the attempts: A is {wrong_token:n} nats on them",
        "feedback that follows the attempt step by step; or look at more rollouts: --num",
    ),
    Rule(
        "spikes_do_not_help",
        "doubtful",
        lambda n: n["gain_at_spikes"].low <= 0,
        "at the strongest tokens the self-teacher's own token is not shown to lead to more right answers: "
        "{gain_at_spikes:n} points",
        "read these tokens on the page: training would move them most",
    ),
    Rule(
        "answer_given_away",
        "doubtful",
        lambda n: n("bare_answer") > 0.5,
        "{bare_answer} of the contexts hold the final answer and little of the way to it: what is learnt is to know "
        "the answer",
        "show steps, or a hint without the answer",
    ),
    Rule(
        "thinking_with_the_answer",
        "doubtful",
        lambda n: n("thinking") > 0.5 and n("answer_in_context") > 0.5,
        "the solver thinks before it answers and {answer_in_context} of the contexts hold the answer: such training is "
        "known to shorten and harm the thought",
        "show feedback without the answer, or train without thinking",
    ),
    Rule(
        "some_missed",
        "doubtful",
        lambda n: 0.1 < n("misses_error") <= 0.5,
        "the critic says all is right of {misses_error} of the wrong attempts",
        "critic.policies.misses_error = mask",
    ),
    Rule(
        "some_quoted",
        "doubtful",
        lambda n: n("quotes_wrong_step") > 0.1 and not (n("quotes_wrong_step") > 0.5 and not n["wrong_token"].high < 0),
        "{quotes_wrong_step} of the critiques of wrong attempts quote the wrong step",
        "critic.policies.quotes_wrong_step = mask",
    ),
    Rule(
        "some_cut",
        "doubtful",
        lambda n: 0.1 < n("cut") <= 0.5,
        "{cut} of the completions are cut at the length limit",
        "raise sampling.max_completion_length",
    ),
    Rule(
        "some_without_answer",
        "doubtful",
        lambda n: 0.5 <= n("answered") < 0.9 and not n("cut") > 0.1,
        "{answered} of the completions mark an answer",
        "look at the others on the page",
    ),
    Rule(
        "speaks_of_it",
        "doubtful",
        lambda n: n("mentions") > 0.1,
        "{mentions} of the self-teacher's completions speak of the feedback or of a reference, and the student would "
        "learn to",
        "ask in prompts.self_teacher not to mention it",
    ),
    Rule(
        "manner",
        "doubtful",
        lambda n: n["style"].low > 0.5 and n("style") > 1.2 * n("style_tokens"),
        "{style} of the signal is on punctuation, layout and connectives ({style_tokens} of the tokens)",
        "contexts in the solver's own words and form",
    ),
    Rule(
        "few_covered",
        "doubtful",
        lambda n: 0.1 <= n("covered") < 0.5,
        "only {covered} of the attempts get a context; the others do not train",
        "see the reasons below",
    ),
    Rule(
        "leaves_out_hard_ones",
        "doubtful",
        lambda n: 0.5 <= n("covered") < 0.9 and not n("usable") >= 0,
        "{covered} of the attempts get a context, and not by chance: where it takes a right attempt of "
        "the same problem, hard problems do not train",
        "a design that has a context for every attempt, or more completions a problem",
    ),
    Rule(
        "some_unusable",
        "doubtful",
        lambda n: n("usable") < 0.75 and n("covered") >= 0.1,
        "only {usable} of the critic's replies can be used; the others are paid for and teach nothing",
        "see their findings below: a larger critic.max_tokens, critic.structured = true, or another critic",
    ),
    Rule(
        "one_sided",
        "note",
        lambda n: not BAND[0] <= n("pass_rate") <= BAND[1] and 0.05 <= n("pass_rate") <= 0.95,
        "the pass rate of {pass_rate} is outside of the band of 25 to 75 %, in which a rollout tells most",
        "choose problems with stepalign select",
    ),
)
NO_TEACHER = ("cut", "not_understood", "all_right", "some_cut", "some_without_answer")
"""The rules for a design without a self-teacher, which trains on verdicts alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """A rule that holds."""

    rule: str
    severity: Severity
    text: str
    mend: str
    loud: bool


def judge(values: Mapping[str, Interval], *, has_teacher: bool = True) -> tuple[Word, list[Reason]]:
    """The verdict on a design, and its reasons, the gravest first.

    Args:
        values: docs/preflight.md names them.
        has_teacher: False for a policy gradient alone, where ``mixed`` is the share of groups with different rewards.
    """
    numbers = Numbers(values)
    rules = RULES if has_teacher else [*(rule for rule in RULES if rule.name in NO_TEACHER), *POLICY_RULES]
    reasons = [
        Reason(rule=rule.name, severity=rule.severity, text=_say(rule.says, numbers), mend=rule.mend, loud=rule.loud)
        for rule in rules
        if rule.holds(numbers)
    ]
    order: tuple[Severity, ...] = ("no", "doubtful", "note")
    reasons.sort(key=lambda reason: (order.index(reason.severity), not reason.loud))
    found = {reason.severity for reason in reasons}
    return "no" if "no" in found else "doubtful" if "doubtful" in found else "go", reasons


POLICY_RULES: tuple[Rule, ...] = (
    Rule(
        "no_contrast",
        "no",
        lambda n: n("mixed") < 0.1,
        "{mixed} of the groups have two different rewards: the others have no gradient",
        "more completions per problem, or problems from the band with stepalign select",
    ),
    Rule(
        "little_contrast",
        "doubtful",
        lambda n: 0.1 <= n("mixed") < 0.4,
        "{mixed} of the groups have two different rewards: the others have no gradient",
        "more completions per problem, or problems from the band with stepalign select",
    ),
    Rule(
        "no_teacher",
        "doubtful",
        lambda n: not n("mixed") >= 0,
        "a control without a self-teacher: no look beforehand says what it would gain",
        "train it beside the design that it controls",
    ),
)


def _say(sentence: str, numbers: Numbers) -> str:
    """A sentence with its numbers: gains in points, nats as they are, shares in percent."""

    class Shown(dict[str, "_Shown"]):
        def __missing__(self, name: str) -> _Shown:
            return _Shown(name, numbers[name])

    return sentence.format_map(Shown())


@dataclass(frozen=True, slots=True)
class _Shown:
    name: str
    number: Interval

    def __format__(self, form: str) -> str:
        value, low, high = self.number.value, self.number.low, self.number.high
        if form != "n":
            return "an unknown share" if value != value else f"{100 * value:.0f} %"
        scale, digits = (100, 1) if self.name.startswith("gain") else (1, 2)
        if value != value:
            return "unknown"
        spread = "" if low != low or high != high else f" [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
        return f"{scale * value:+.{digits}f}{spread}".replace("-", "−")
