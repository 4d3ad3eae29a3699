"""Guard rails: say early, and with the reason, that a run decays.

Self-distillation can collapse while its loss looks healthy: the teacher turns into a noisy copy of the student, both
heat up, and the pass rate falls. The guards watch the rollouts' pass rate, both entropies and the probability that the
self-teacher gives to the right value where the solver went wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stepalign.config import GuardsSection


class Guards:
    """Compares the last window of steps with the best and the first one. Each guard speaks once."""

    def __init__(self, section: GuardsSection) -> None:
        self._section = section
        self.history: list[dict[str, float]] = []
        self.warned: list[str] = []

    def look(self, numbers: Mapping[str, float]) -> list[str]:
        """New warnings after one more step."""
        self.history.append({name: numbers.get(name, math.nan) for name in WATCHED})
        found = {
            "reward": self._reward(),
            "student_entropy": self._entropy("student_entropy", "the student's"),
            "teacher_entropy": self._entropy("teacher_entropy", "the self-teacher's"),
            "right_value_probability": self._reading(),
            "grad_norm": self._gradient(),
        }
        new = {guard: text for guard, text in found.items() if text and guard not in self.warned}
        self.warned += new
        return list(new.values())

    def _windows(self, name: str) -> list[float]:
        """Means of all windows in which the number is defined, the present one last; none while that is undefined."""
        values = [row[name] for row in self.history]
        size = self._section.window
        means = [_mean(values[end - size : end]) for end in range(size, len(values) + 1)]
        return [] if not means or math.isnan(means[-1]) else [mean for mean in means if not math.isnan(mean)]

    def _reward(self) -> str:
        windows = self._windows("reward")
        # A low rate cannot fall by the whole drop: losing half of it counts as well.
        if not windows or not windows[-1] < max(windows) - min(self._section.reward_drop, max(windows) / 2):
            return ""
        return (
            f"the rollouts' pass rate fell to {windows[-1]:.2f} from {max(windows):.2f} "
            f"(means of {self._section.window} steps): {self._advice('lower training.learning_rate')}"
        )

    def _entropy(self, name: str, whose: str) -> str:
        windows = self._windows(name)
        if not windows or not windows[-1] > max(windows[0] * self._section.entropy_factor, 0.05):
            return ""
        return (
            f"{whose} entropy grew to {windows[-1]:.2f} nats a token from {windows[0]:.2f}: the policy heats up; "
            + self._advice("lower training.learning_rate")
        )

    def _advice(self, common: str) -> str:
        """What may help; the self-teacher can be at fault only where there is one."""
        taught = any(not math.isnan(row["teacher_entropy"]) for row in self.history)
        return common + (", or use objective.teacher.weights = initial or ema" if taught else "")

    def _reading(self) -> str:
        windows = self._windows("right_value_probability")
        # Only a self-teacher that did read can stop reading; some designs never tell the right value.
        if not windows or max(windows) < 0.5 or not windows[-1] < 0.75 * max(windows):
            return ""
        return (
            f"the self-teacher gives the right value only {windows[-1]:.2f} at the solver's errors, {max(windows):.2f} "
            "before: it no longer reads its context; use a steadier self-teacher"
        )

    def _gradient(self) -> str:
        if math.isfinite(self.history[-1]["grad_norm"]):
            return ""
        return "the gradient is not finite; the step was skipped"


WATCHED = ("reward", "student_entropy", "teacher_entropy", "right_value_probability", "grad_norm")


def _mean(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN when nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
