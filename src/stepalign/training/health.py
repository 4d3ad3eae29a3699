"""Guards: say early, and with the reason, that a run decays. ``breaks`` has what cannot wait for a warning.

Self-distillation can collapse while its loss looks healthy: the teacher turns into a noisy copy of the student, both
heat up, and the pass rate falls. Other runs shrink, ramble, repeat themselves, or train on nothing at all. Each guard
is a row of ``GUARDS``: a metric, when its window means are ill, and a sentence with what was seen and what may help.
It speaks once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepalign.config import GuardsSection, TeacherWeights
from stepalign.training import breaks
from stepalign.training.breaks import BREAK_Z

WATCHED = (
    *("reward", "student_entropy", "teacher_entropy", "right_value_probability", "grad_norm"),
    *("num_problems", "num_rollouts", "active_samples", "masked"),
    *("completions/clipped_ratio", "completions/mean_length", "completions/repetitive_ratio"),
    *("completions/hedge_words", "completions/distinct_answers", "completions/mentions_feedback"),
)
RISE = 0.05
"""A pass rate that much above its first window has risen: then a calmer or another style is learning, not decay."""
SLOWER = "lower training.learning_rate"


@dataclass(slots=True)
class History:
    """The view of the guards. It is as large after a million steps as after forty."""

    rows: list[dict[str, float]]
    """A number per name (NaN where undefined) of every step that a guard may still ask for."""
    section: GuardsSection
    masked: Mapping[str, int] = field(default_factory=dict)
    """Samples of the whole run, by reason."""
    follows: bool = True
    """Whether the self-teacher's weights follow the student's closely (``objective.teacher.weights``)."""
    distils: bool = False
    """Whether there has been a self-teacher at all."""
    means: dict[str, list[float]] = field(default_factory=dict)
    """By name, of all windows in which the number was defined: the first mean, the largest and the last, or the one."""

    def add(self, numbers: Mapping[str, float]) -> None:
        """One more step."""
        size = self.section.window
        self.rows.append({name: numbers.get(name, math.nan) for name in (*WATCHED, *breaks.WATCHED)})
        del self.rows[: -max(2 * size, size + breaks.LATEST)]
        self.distils |= not math.isnan(self.now("teacher_entropy"))
        for name in WATCHED if len(self.rows) >= size else ():
            if not math.isnan(mean := _mean(self.last(name, size))):
                known = [*self.means.get(name, ()), mean]
                self.means[name] = known if len(known) == 1 else [known[0], max(known), mean]

    def now(self, name: str) -> float:
        return self.rows[-1].get(name, math.nan)

    def last(self, name: str, count: int) -> list[float]:
        """The values of the last ``count`` steps, or of all where there are fewer."""
        return [row.get(name, math.nan) for row in self.rows[-count:]]

    def windows(self, name: str) -> list[float]:
        """``means``, the present one last; none while that is undefined."""
        return [] if math.isnan(_mean(self.last(name, self.section.window))) else self.means.get(name, [])

    @property
    def has_risen(self) -> bool:
        """Whether the pass rate is better than at the beginning."""
        rewards = self.windows("reward")
        return bool(rewards) and rewards[-1] > rewards[0] + RISE

    @property
    def advice(self) -> str:
        """A remedy; the self-teacher can be at fault only where there is one that follows the student."""
        follows = self.distils and self.follows
        return SLOWER + (", or use objective.teacher.weights = initial or ema" if follows else "")

    @property
    def commonest_mask(self) -> str:
        """The most frequent reason for which samples were masked, or ""."""
        if not self.masked:
            return ""
        reason = max(self.masked, key=lambda name: self.masked[name])
        return f"most often: {reason} ({self.masked[reason]} of {sum(self.masked.values())})"


@dataclass(frozen=True, slots=True)
class Guard:
    """Looks at the window means of one metric."""

    metric: str
    is_ill: Callable[[list[float], GuardsSection], bool]
    """Whether these means, the present one last, say that something is wrong."""
    sentence: str
    """With {first}, {last} and {best} window, {grew} and {advice} filled in."""
    unless_risen: bool = False
    """A style that changes while the pass rate rises is learning."""

    def __call__(self, history: History) -> str:
        means = history.windows(self.metric)
        if not means or (self.unless_risen and history.has_risen) or not self.is_ill(means, history.section):
            return ""
        values = {"first": means[0], "last": means[-1], "best": max(means), "window": history.section.window}
        before = f", {means[0]:.0%} in the first window" if len(means) > 1 else ""
        grew = "shrank" if means[-1] < means[0] else "grew"
        return self.sentence.format(**values, before=before, grew=grew, advice=history.advice)


def pass_rate_broke(history: History) -> str:
    """A fall too steep to wait for a window: the last few steps against those before them, as two proportions.

    z = (p - q) / sqrt(r (1 - r) (1/n + 1/m)) with the pooled rate r; n and m count problems, for rollouts of one
    problem are not independent. It also sees a collapse in the first steps, before there is a window to fall from.
    """
    window = history.section.window
    rewards, problems = history.last("reward", 2 * window), history.last("num_problems", 2 * window)
    for length in range(1, min(window, len(rewards))):
        start = max(0, len(rewards) - length - window)
        before, n = breaks.pooled(rewards[start:-length], problems[start:-length])
        after, m = breaks.pooled(rewards[-length:], problems[-length:])
        if not after < before - min(history.section.reward_drop, before / 2):  # also where one is undefined
            continue
        pooled = (before * n + after * m) / (n + m)
        if before - after > BREAK_Z * math.sqrt(max(0.0, pooled * (1 - pooled)) * (1 / n + 1 / m)):
            return (
                f"the rollouts' pass rate broke to {after:.2f} from {before:.2f} within {length} "
                f"step{'s' if length > 1 else ''}: {history.advice}"
            )
    return ""


def gradient_breaks(history: History) -> str:
    return "" if math.isfinite(history.now("grad_norm")) else "the gradient is not finite; the step was skipped"


def trains_on_nothing(history: History) -> str:
    """At once where every sample of a step is masked; after a window where rewards alone give no signal."""
    why = history.commonest_mask
    if history.now("active_samples") == 0 and history.now("masked") >= history.now("num_rollouts"):
        return f"this step trained on nothing: every sample is masked, {why or 'for no recorded reason'}"
    recent = history.last("active_samples", history.section.window)
    if len(recent) < history.section.window or any(amount != 0 for amount in recent):
        return ""
    return f"nothing was trained on for {len(recent)} steps: " + (
        why or "no group has both right and wrong rollouts; use other problems or a larger sampling.num_generations"
    )


def much_is_masked(history: History) -> str:
    masked, rollouts = history.windows("masked"), history.windows("num_rollouts")
    if not masked or not rollouts or not masked[-1] > history.section.masked * rollouts[-1] > 0:
        return ""
    return f"{masked[-1] / rollouts[-1]:.0%} of the samples are masked and train nothing, {history.commonest_mask}"


def answers_are_alike(history: History) -> str:
    means = history.windows("completions/distinct_answers")
    if not means or history.has_risen or not means[-1] < history.section.distinct_share * means[0]:
        return ""
    one_each = history.now("num_problems") / (history.now("num_rollouts") or math.nan)  # one answer in every group
    if means[0] <= one_each:
        return ""  # few groups had any answer, none had a choice of them to lose
    seen = f"the different answers of a group fell to {means[-1]:.2f} a completion from {means[0]:.2f}"
    if means[-1] < one_each:
        return f"{seen}: in some groups no completion has an answer any more; {history.advice}"
    return f"{seen} and the pass rate has not risen: the solver gives one answer whatever it is; {history.advice}"


def _entropy_grew(means: list[float], section: GuardsSection) -> bool:
    return means[-1] > max(means[0] * section.entropy_factor, 0.05)


GUARDS: dict[str, Callable[[History], str]] = {
    # A low rate cannot fall by the whole drop: losing half counts as well.
    "reward": Guard(
        "reward",
        lambda means, section: means[-1] < max(means) - min(section.reward_drop, max(means) / 2),
        "the rollouts' pass rate fell to {last:.2f} from {best:.2f} (means of {window} steps): {advice}",
    ),
    "reward_break": pass_rate_broke,
    "student_entropy": Guard(
        "student_entropy",
        _entropy_grew,
        "the student's entropy grew to {last:.2f} nats a token from {first:.2f}: the policy heats up; {advice}",
    ),
    "teacher_entropy": Guard(
        "teacher_entropy",
        _entropy_grew,
        "the self-teacher's entropy grew to {last:.2f} nats a token from {first:.2f}: the policy heats up; {advice}",
    ),
    "student_entropy_low": Guard(
        "student_entropy",
        lambda means, section: means[-1] < means[0] * section.entropy_floor,
        "the student's entropy fell to {last:.3f} nats a token from {first:.3f} and the pass rate has not risen: "
        "the policy no longer explores; {advice}",
        unless_risen=True,
    ),
    # Only a self-teacher that did read can stop reading; some designs never tell the right value.
    "right_value_probability": Guard(
        "right_value_probability",
        lambda means, _: max(means) >= 0.5 and means[-1] < 0.75 * max(means),
        "the self-teacher gives the right value only {last:.2f} at the solver's errors, {best:.2f} before: it no "
        "longer reads its context; use a steadier self-teacher",
    ),
    "grad_norm": gradient_breaks,
    "nothing": trains_on_nothing,
    "masked": much_is_masked,
    "truncated": Guard(
        "completions/clipped_ratio",
        lambda means, section: means[-1] > section.truncated,
        "{last:.0%} of the completions are cut at sampling.max_completion_length{before}: what is cut has no answer; "
        "raise the limit, or look whether the solver has begun to ramble",
    ),
    "length": Guard(
        "completions/mean_length",
        lambda means, section: not means[0] / section.length_factor <= means[-1] <= means[0] * section.length_factor,
        "completions {grew} to {last:.0f} tokens from {first:.0f} and the pass rate has not risen: {advice}",
        unless_risen=True,
    ),
    "repetition": Guard(
        "completions/repetitive_ratio",
        lambda means, section: means[-1] > max(section.repetitive, 2 * means[0] if len(means) > 1 else 0.0),
        "{last:.0%} of the completions repeat themselves at their end (zlib shortens it more than 10 times): {advice}",
    ),
    # Below one hedge word in two completions there is no habit to lose.
    "hedge_words": Guard(
        "completions/hedge_words",
        lambda means, section: means[0] >= 0.5 and means[-1] < section.hedge_share * means[0],
        "hedge words (wait, maybe, let me check, ...) fell to {last:.2f} a completion from {first:.2f}: rich contexts "
        "unlearn doubt, which can cost accuracy elsewhere; show the self-teacher less, or keep it frozen",
    ),
    "mentions_feedback": Guard(
        "completions/mentions_feedback",
        lambda means, section: means[-1] > means[0] + section.mention_rise,
        "{last:.0%} of the completions mention feedback, a reference or an earlier attempt{before}: the student "
        "repeats what only its self-teacher is shown; a context with less to quote may help",
    ),
    "distinct_answers": answers_are_alike,
}


class Guards:
    """Asks every guard after every step. Each speaks once.

    Args:
        teacher: ``objective.teacher.weights``, for the advice.
    """

    def __init__(self, section: GuardsSection, teacher: TeacherWeights = "live") -> None:
        self.section = section
        self.history = History([], section, follows=teacher in ("live", "trust_region"))
        self.warned: list[str] = []
        self.broke: breaks.Broke | None = None
        """A break in the last step that asks for more than a warning."""

    def look(self, numbers: Mapping[str, float], masked: Mapping[str, int] | None = None) -> list[str]:
        """New warnings after one more step.

        Args:
            numbers: the step's numbers, as in metrics.jsonl.
            masked: samples masked in the whole run so far, by reason.
        """
        history = self.history
        history.add(numbers)
        history.masked = masked or {}
        found = {name: guard(history) for name, guard in GUARDS.items() if name not in self.warned}
        new = {name: text for name, text in found.items() if text}
        self.warned += new
        self.broke = breaks.find_break(history.rows, self.section)
        if self.broke is not None and self.broke.policy == "warn":
            name = self.broke.guard
            if name not in self.warned and breaks.SIGNS.get(name) not in self.warned:
                new[name] = self.broke.sentence
                self.warned.append(name)
            self.broke = None
        return list(new.values())

    def remember(self, metrics: Iterable[Mapping[str, Any]], taken_back: Iterable[tuple[int, int]]) -> None:
        """The history of a run, from its metrics.jsonl.

        Args:
            taken_back: (step that the run went back to, step that broke it) of every roll-back: those between are left
                out, as the run went on from the weights before them.
        """
        lost = [range(to + 1, broke + 1) for to, broke in taken_back]
        self.history = History([], self.section, follows=self.history.follows)
        for row in metrics:
            if not any(row["step"] in steps for steps in lost):
                self.history.add({name: value for name, value in row.items() if value is not None})


MUCH_CUT = 0.3
"""Share of the first step's completions that are cut, above which a run says so at once."""


def first_step(numbers: Mapping[str, float]) -> str:
    """A sentence about a first step from which little or nothing is learned, with what may help; else "".

    Args:
        numbers: as in metrics.jsonl.
    """
    total = int(numbers["num_rollouts"])
    names = ("correct_ratio", "answered_ratio", "clipped_ratio")
    right, answered, cut = (round(total * numbers[f"completions/{name}"]) for name in names)
    still, much_cut = numbers["grad_norm"] == 0, cut > MUCH_CUT * total
    unfit = not right and 2 * answered < total
    if not (still or much_cut or unfit):
        return ""
    seen = f"{right} of {total} rollouts are right, {answered} mark an answer, {cut} are cut at the length limit"
    if much_cut:
        limits = "sampling.max_completion_length (of a turn: environment.max_turn_length)"
        advice = f"a completion that is cut has no answer: raise {limits}, or ask for less"
    elif unfit:
        advice = "prompt and model do not fit: look at rollouts.jsonl, and change prompts.student or model.path"
    elif right in (0, total):
        advice = f"the problems are too {'easy' if right else 'hard'}: stepalign select keeps those in between"
    else:
        advice = "no group has both right and wrong rollouts: a larger sampling.num_generations may"
    return f"{'there is no gradient: ' if still else ''}{seen}: {advice}"


def _mean(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN when nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
