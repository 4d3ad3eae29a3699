"""Guard rails: say early, and with the reason, that a run decays.

Self-distillation can collapse while its loss looks healthy: the teacher turns into a noisy copy of the student, both
heat up, and the pass rate falls. Other runs shrink, ramble, repeat themselves, or train on nothing at all. Each guard
is a small function of the history in one table; it speaks once, and says what it saw and what may help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stepalign.config import GuardsSection, TeacherWeights

WATCHED = (
    "reward",
    "student_entropy",
    "teacher_entropy",
    "right_value_probability",
    "grad_norm",
    "num_problems",
    "num_rollouts",
    "active_samples",
    "masked",
    "completions/clipped_ratio",
    "completions/mean_length",
    "completions/repetitive_ratio",
    "completions/hedge_words",
    "completions/distinct_answers",
)
RISE = 0.05
"""A pass rate that much above its first window has risen: then a calmer or another style is learning, not decay."""
BREAK_Z = 5.0
"""Standard errors between two pass rates that chance does not explain, over all the looks of a long run."""


@dataclass(frozen=True, slots=True)
class History:
    """What the guards see: a number per step and name (NaN where undefined), and what was masked so far, by reason."""

    rows: Sequence[Mapping[str, float]]
    section: GuardsSection
    masked: Mapping[str, int] = field(default_factory=dict)
    follows: bool = True
    """Whether the self-teacher's weights follow the student's closely (``objective.teacher.weights``)."""
    means: dict[str, list[float]] = field(default_factory=dict)
    """Window means by name, as far as they were asked for: a long run is not averaged anew at each step."""

    def now(self, name: str) -> float:
        return self.rows[-1].get(name, math.nan)

    def last(self, name: str, count: int) -> list[float]:
        """The values of the last ``count`` steps, or of all where there are fewer."""
        return [row.get(name, math.nan) for row in self.rows[-count:]]

    def windows(self, name: str) -> list[float]:
        """Means of all windows in which the number is defined, the present one last; none while that is undefined."""
        means, size = self.means.setdefault(name, []), self.section.window
        for end in range(size + len(means), len(self.rows) + 1):
            means.append(_mean([row.get(name, math.nan) for row in self.rows[end - size : end]]))
        return [] if not means or math.isnan(means[-1]) else [mean for mean in means if not math.isnan(mean)]

    def has_risen(self) -> bool:
        """Whether the pass rate is better than at the beginning."""
        rewards = self.windows("reward")
        return bool(rewards) and rewards[-1] > rewards[0] + RISE

    def advice(self, common: str) -> str:
        """What may help; the self-teacher can be at fault only where there is one that follows the student."""
        taught = any(not math.isnan(value) for value in self.last("teacher_entropy", len(self.rows)))
        return common + (", or use objective.teacher.weights = initial or ema" if taught and self.follows else "")

    def commonest_mask(self) -> str:
        """The most frequent reason for which samples were masked, or ""."""
        if not self.masked:
            return ""
        reason = max(self.masked, key=lambda name: self.masked[name])
        return f"most often: {reason} ({self.masked[reason]} of {sum(self.masked.values())})"


def pass_rate_fell(history: History) -> str:
    """The last window against the best one. A low rate cannot fall by the whole drop: losing half counts as well."""
    windows = history.windows("reward")
    if not windows or not windows[-1] < max(windows) - min(history.section.reward_drop, max(windows) / 2):
        return ""
    return (
        f"the rollouts' pass rate fell to {windows[-1]:.2f} from {max(windows):.2f} "
        f"(means of {history.section.window} steps): {history.advice('lower training.learning_rate')}"
    )


def pass_rate_broke(history: History) -> str:
    """A fall too steep to wait for a window: the last few steps against those before them, as two proportions.

    z = (p - q) / sqrt(r (1 - r) (1/n + 1/m)) with the pooled rate r; n and m count problems, for rollouts of one
    problem are not independent. It also sees a collapse in the first steps, before there is a window to fall from.
    """
    window = history.section.window
    rewards, problems = history.last("reward", 2 * window), history.last("num_problems", 2 * window)
    for length in range(1, min(window, len(rewards))):
        start = max(0, len(rewards) - length - window)
        before, n = _pooled(rewards[start:-length], problems[start:-length])
        after, m = _pooled(rewards[-length:], problems[-length:])
        if not after < before - min(history.section.reward_drop, before / 2):  # also where one is undefined
            continue
        pooled = (before * n + after * m) / (n + m)
        if before - after > BREAK_Z * math.sqrt(max(0.0, pooled * (1 - pooled)) * (1 / n + 1 / m)):
            return (
                f"the rollouts' pass rate broke to {after:.2f} from {before:.2f} within {length} "
                f"step{'s' if length > 1 else ''}: {history.advice('lower training.learning_rate')}"
            )
    return ""


def student_heats_up(history: History) -> str:
    return _entropy_grew(history, "student_entropy", "the student's")


def teacher_heats_up(history: History) -> str:
    return _entropy_grew(history, "teacher_entropy", "the self-teacher's")


def _entropy_grew(history: History, name: str, whose: str) -> str:
    windows = history.windows(name)
    if not windows or not windows[-1] > max(windows[0] * history.section.entropy_factor, 0.05):
        return ""
    return (
        f"{whose} entropy grew to {windows[-1]:.2f} nats a token from {windows[0]:.2f}: the policy heats up; "
        + history.advice("lower training.learning_rate")
    )


def student_freezes(history: History) -> str:
    windows = history.windows("student_entropy")
    if not windows or history.has_risen() or not windows[-1] < windows[0] * history.section.entropy_floor:
        return ""
    return (
        f"the student's entropy fell to {windows[-1]:.3f} nats a token from {windows[0]:.3f} and the pass rate has not "
        f"risen: the policy no longer explores; {history.advice('lower training.learning_rate')}"
    )


def teacher_stops_reading(history: History) -> str:
    windows = history.windows("right_value_probability")
    # Only a self-teacher that did read can stop reading; some designs never tell the right value.
    if not windows or max(windows) < 0.5 or not windows[-1] < 0.75 * max(windows):
        return ""
    return (
        f"the self-teacher gives the right value only {windows[-1]:.2f} at the solver's errors, {max(windows):.2f} "
        "before: it no longer reads its context; use a steadier self-teacher"
    )


def gradient_breaks(history: History) -> str:
    if math.isfinite(history.now("grad_norm")):
        return ""
    return "the gradient is not finite; the step was skipped"


def trains_on_nothing(history: History) -> str:
    """At once where every sample of a step is masked; after a window where rewards alone give no signal."""
    why = history.commonest_mask()
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
    return f"{masked[-1] / rollouts[-1]:.0%} of the samples are masked and train nothing, {history.commonest_mask()}"


def much_is_cut(history: History) -> str:
    windows = history.windows("completions/clipped_ratio")
    if not windows or not windows[-1] > history.section.truncated:
        return ""
    first = f", {windows[0]:.0%} in the first window" if len(windows) > 1 else ""
    return (
        f"{windows[-1]:.0%} of the completions are cut at sampling.max_completion_length{first}: "
        "what is cut has no answer; raise the limit, or look whether the solver has begun to ramble"
    )


def length_drifts(history: History) -> str:
    windows, factor = history.windows("completions/mean_length"), history.section.length_factor
    if not windows or history.has_risen() or windows[0] / factor <= windows[-1] <= windows[0] * factor:
        return ""
    how = "shrank" if windows[-1] < windows[0] else "grew"
    return (
        f"completions {how} to {windows[-1]:.0f} tokens from {windows[0]:.0f} and the pass rate has not risen: "
        + history.advice("lower training.learning_rate")
    )


def repeats_itself(history: History) -> str:
    windows = history.windows("completions/repetitive_ratio")
    if not windows or not windows[-1] > max(history.section.repetitive, 2 * windows[0] if len(windows) > 1 else 0.0):
        return ""
    return (
        f"{windows[-1]:.0%} of the completions repeat themselves at their end (zlib shortens it more than 10 times): "
        + history.advice("lower training.learning_rate")
    )


def stops_doubting(history: History) -> str:
    windows = history.windows("completions/hedge_words")
    # Below one hedge word in two completions there is no habit to lose.
    if not windows or windows[0] < 0.5 or not windows[-1] < history.section.hedge_share * windows[0]:
        return ""
    return (
        f"hedge words (wait, maybe, let me check, ...) fell to {windows[-1]:.2f} a completion from {windows[0]:.2f}: "
        "rich contexts unlearn doubt, which can cost accuracy elsewhere; show the self-teacher less, or keep it frozen"
    )


def answers_are_alike(history: History) -> str:
    windows = history.windows("completions/distinct_answers")
    if not windows or history.has_risen() or not windows[-1] < history.section.distinct_share * windows[0]:
        return ""
    one_each = history.now("num_problems") / (history.now("num_rollouts") or math.nan)  # one answer in every group
    if windows[0] <= one_each:
        return ""  # few groups had any answer, none had a choice of them to lose
    if windows[-1] < one_each:
        return (
            f"the different answers of a group fell to {windows[-1]:.2f} a completion from {windows[0]:.2f}: in some "
            f"groups no completion has an answer any more; {history.advice('lower training.learning_rate')}"
        )
    return (
        f"the different answers of a group fell to {windows[-1]:.2f} a completion from {windows[0]:.2f} and the pass "
        "rate has not risen: the solver gives one answer whatever it is; "
        + history.advice("lower training.learning_rate")
    )


GUARDS: dict[str, Callable[[History], str]] = {
    "reward": pass_rate_fell,
    "reward_break": pass_rate_broke,
    "student_entropy": student_heats_up,
    "teacher_entropy": teacher_heats_up,
    "student_entropy_low": student_freezes,
    "right_value_probability": teacher_stops_reading,
    "grad_norm": gradient_breaks,
    "nothing": trains_on_nothing,
    "masked": much_is_masked,
    "truncated": much_is_cut,
    "length": length_drifts,
    "repetition": repeats_itself,
    "hedge_words": stops_doubting,
    "distinct_answers": answers_are_alike,
}


class Guards:
    """Asks every guard after every step. Each speaks once.

    Args:
        teacher: ``objective.teacher.weights``, for the advice.
    """

    def __init__(self, section: GuardsSection, teacher: TeacherWeights = "live") -> None:
        self._section = section
        self._follows = teacher in ("live", "trust_region")
        self.history: list[dict[str, float]] = []
        self.warned: list[str] = []
        self._means: dict[str, list[float]] = {}

    def look(self, numbers: Mapping[str, float], masked: Mapping[str, int] | None = None) -> list[str]:
        """New warnings after one more step.

        Args:
            numbers: the step's numbers, as in metrics.jsonl.
            masked: samples masked in the whole run so far, by reason.
        """
        self.history.append({name: numbers.get(name, math.nan) for name in WATCHED})
        history = History(self.history, self._section, masked or {}, self._follows, self._means)
        found = {name: guard(history) for name, guard in GUARDS.items() if name not in self.warned}
        new = {name: text for name, text in found.items() if text}
        self.warned += new
        return list(new.values())


def _mean(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN when nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _pooled(rates: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """The rate over all the steps in which it is defined, and how many problems that are."""
    known = [(rate, n) for rate, n in zip(rates, counts, strict=True) if not math.isnan(rate * n) and n > 0]
    total = sum(n for _, n in known)
    return (sum(rate * n for rate, n in known) / total, total) if total else (math.nan, 0.0)
