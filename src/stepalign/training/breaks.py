"""Breaks: a policy that is wrecked within a few steps, seen in the numbers of those steps. Pure.

Each break is a row of ``BREAKS``: a function from the numbers of all steps so far to how many steps it has lasted, with
a sentence about it. What is done then is ``guards.policy``, or the key of that name in ``guards``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stepalign.config import GuardPolicy, GuardsSection

Rows = Sequence[Mapping[str, float]]
WATCHED = ("loss", "divergence", "reward_std", "completions/answered_ratio")
"""Beside those of the guards."""
LATEST = 10
"""Steps within which a break is seen."""
BREAK_Z = 5.0
"""Standard errors that chance does not explain, over all the looks of a long run."""
SIGN_Z = 2.0
"""Standard errors that each of two signs has at least, before they count together."""
NOT_FINITE = 3
"""Steps without a finite gradient, one after another: the weights do not move any more."""
ABSURD = 50.0
"""Nats a token. A vocabulary of a million entries has an entropy of 14 at most."""


@dataclass(frozen=True, slots=True)
class Broke:
    """A break that was seen in the last step."""

    guard: str
    policy: GuardPolicy
    length: int
    """Steps that it has lasted: the completions of the step before them were those of a healthy policy."""
    sentence: str


Found = tuple[int, str] | None
"""(steps that it has lasted, sentence)."""


def values(rows: Rows, name: str) -> list[float]:
    return [row.get(name, math.nan) for row in rows]


def _share_breaks(rows: Rows, section: GuardsSection, shares: Sequence[float], sentence: str, heats: bool) -> Found:
    """Whether a share has fallen too steeply to wait for a window, by ``reward_drop`` or half of it at least.

    The last few steps against those before them, as two proportions: the signed root of the likelihood ratio
    2 (n KL(p || r) + m KL(q || r)) with the pooled rate r. Both of the last two steps must be low: one bad step often
    mends itself. With ``heats`` a growth of the student's entropy counts too: both signs, of ``SIGN_Z`` standard errors
    each at least, are (a + b) / sqrt(2) together.

    Sources: G-test, A. Agresti, Categorical Data Analysis, 3rd ed., section 3.2; the sum is Stouffer's.
    """
    shares, counts = [min(max(share, 0.0), 1.0) for share in shares], independent(rows)  # NaN stays
    for length in range(2, min(LATEST + 1, len(shares))):
        start = max(0, len(shares) - length - section.window)
        before, n = pooled(shares[start:-length], counts[start:-length])
        after, m = pooled(shares[-length:], counts[-length:])
        middle = (before + after) / 2
        if not (after < before - min(section.reward_drop, before / 2) and max(shares[-2:]) < middle):
            continue  # also where one is undefined
        rate = (before * n + after * m) / (n + m)
        fall = math.sqrt(max(0.0, 2 * (n * _divergence(before, rate) + m * _divergence(after, rate))))
        if fall < BREAK_Z and not (heats and fall >= SIGN_Z and _is_joined(fall, _growth(rows[start:], length))):
            continue
        # It began where the share was nearer to its end than to its beginning.
        while length < min(LATEST, len(shares) - 1) and shares[-length - 1] < middle:
            length += 1
        heat = "" if fall >= BREAK_Z else ", and the student's entropy grew"
        return length, sentence.format(after=after, before=before, steps=f"{length} steps") + heat
    return None


def _is_joined(fall: float, growth: float) -> bool:
    return growth >= SIGN_Z and fall + growth >= BREAK_Z * math.sqrt(2)


def independent(rows: Rows) -> list[float]:
    """Independent observations in each step. Rollouts of one problem are alike: N / (1 + (G - 1) rho).

    rho = 1 - s^2 / (p (1 - p)), over all steps, with the mean spread s in a group; 1 where there is none.

    Source: the design effect, L. Kish, Survey Sampling, 1965, section 5.4.
    """
    spread, rates = values(rows, "reward_std"), values(rows, "reward")
    known = [(s * s, p * (1 - p)) for s, p in zip(spread, rates, strict=True) if math.isfinite(s * p)]
    within, total = sum(one for one, _ in known), sum(one for _, one in known)
    alike = min(1.0, max(0.0, 1 - within / total)) if total > 0 else 1.0
    found = []
    for row in rows:
        problems = row.get("num_problems", math.nan)
        rollouts = row.get("num_rollouts", problems)
        found.append(rollouts / (1 + max(rollouts / problems - 1, 0.0) * alike) if problems else 0.0)
    return found


def _growth(rows: Rows, length: int) -> float:
    """Standard errors by which the entropy's logarithm has grown in the last steps; a step varies by 10 % at least."""
    logs = [math.log(value) if value > 0 else math.nan for value in values(rows, "student_entropy")]
    before, after = _defined(logs[:-length]), _defined(logs[-length:])
    if len(before) < 2 or not after:
        return 0.0
    spread = max(0.1, statistics.stdev(before))
    return (statistics.mean(after) - statistics.mean(before)) / (spread * math.sqrt(1 / len(before) + 1 / len(after)))


def _share(
    name: str, sentence: str, *, others: bool = False, heats: bool = False
) -> Callable[[Rows, GuardsSection], Found]:
    """The break of one share, or with ``others`` of the rest to 1; see ``_share_breaks``."""

    def look(rows: Rows, section: GuardsSection) -> Found:
        shares = [1 - value if others else value for value in values(rows, name)]
        return _share_breaks(rows, section, shares, sentence, heats)

    return look


_fewer_end = _share(
    "completions/clipped_ratio",
    "only {after:.0%} of the completions end within the length limit, {before:.0%} did {steps} ago",
    others=True,
)


def _cut(rows: Rows, section: GuardsSection) -> Found:
    """More completions are cut, and no more of them are right: a solver that learns to think longer is no wreck."""
    found = _fewer_end(rows, section)
    rates = values(rows, "reward")
    if found and statistics.fmean(rates[-found[0] :]) > statistics.fmean(rates[: -found[0]]):
        return None
    return found


def _divergence(p: float, q: float) -> float:
    """Of two coins, nats."""
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0 < b)


def _gradient(rows: Rows, _: GuardsSection) -> Found:
    last = values(rows, "grad_norm")[-NOT_FINITE:]
    if len(last) < NOT_FINITE or any(math.isfinite(value) for value in last):
        return None
    return NOT_FINITE, f"{NOT_FINITE} steps in a row had no finite gradient: the run has diverged"


def _scale(rows: Rows, section: GuardsSection) -> Found:
    """Two steps in a row at ten times all that the steps before them had, or one at a size that no text has."""
    for name in ("divergence", "loss"):
        every = [abs(value) for value in values(rows, name)]
        if every and every[-1] > ABSURD:
            return 1, f"the {name} is {every[-1]:.3g} nats a token: the numbers are out of all scale"
        before, after = _defined(every[:-2])[-section.window :], every[-2:]
        if before and len(after) == 2 and min(after) > max(1.0, 10 * max(before)):
            return 2, f"the {name} grew to {after[-1]:.3g} from at most {max(before):.3g} within 2 steps"
    return None


def _entropy(rows: Rows, section: GuardsSection) -> Found:
    """Two steps in a row above twice, or below a tenth, of all that the steps before them had."""
    every = values(rows, "student_entropy")
    before, after = _defined(every[:-2])[-section.window :], every[-2:]
    if not before or len(after) < 2:
        return None
    if min(after) > max(2 * max(before), max(before) + 0.5):
        how, seen = "grew", max(before)
    elif max(after) < 0.1 * min(before):
        how, seen = "fell", min(before)
    else:
        return None
    return 2, f"the student's entropy {how} to {after[-1]:.3g} nats a token from {seen:.3g} within 2 steps"


def _nothing(rows: Rows, section: GuardsSection) -> Found:
    """No sample, or no gradient at all. A solver that has nothing left to learn is no wreck."""
    recent = rows[-section.window :]
    if len(recent) < section.window or any(row["active_samples"] and row["grad_norm"] for row in recent):
        return None
    if min(values(recent, "reward")) == 1:
        return None
    return section.window, f"nothing was trained on for {section.window} steps"


BREAKS: dict[str, Callable[[Rows, GuardsSection], Found]] = {
    "gradient": _gradient,
    "scale": _scale,
    "entropy": _entropy,
    "pass_rate": _share(
        "reward", "the rollouts' pass rate broke to {after:.2f} from {before:.2f} within {steps}", heats=True
    ),
    "answers": _share(
        "completions/answered_ratio",
        "only {after:.0%} of the completions have an answer, {before:.0%} had one {steps} ago",
    ),
    "cut": _cut,
    "repetition": _share(
        "completions/repetitive_ratio",
        "only {after:.0%} of the completions do not repeat themselves at their end, {before:.0%} did not {steps} ago",
        others=True,
    ),
    "nothing": _nothing,
}
SIGNS = {
    "gradient": "grad_norm",
    "pass_rate": "reward_break",
    "cut": "truncated",
    "repetition": "repetition",
    "nothing": "nothing",
}
"""Guards that warn of the same."""


def find_break(rows: Rows, section: GuardsSection) -> Broke | None:
    """The break of the last step that asks for most: to roll back, to stop, to warn."""
    found, rows = [], rows[-section.window - LATEST :]
    for name, look in BREAKS.items():
        policy = getattr(section, name) or section.policy
        if name == "nothing" and policy == "roll_back":  # to the same weights
            policy = "stop"
        if (seen := look(rows, section)) is not None:
            found.append(Broke(name, policy, *seen))
    order: list[GuardPolicy] = ["stop", "roll_back", "warn"]
    return min(found, key=lambda broke: order.index(broke.policy)) if found else None


def _defined(numbers: Sequence[float]) -> list[float]:
    return [number for number in numbers if math.isfinite(number)]


def pooled(rates: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """The rate over all the steps in which it is defined, and how many observations that are."""
    known = [(rate, n) for rate, n in zip(rates, counts, strict=True) if not math.isnan(rate * n) and n > 0]
    total = sum(n for _, n in known)
    return (sum(rate * n for rate, n in known) / total, total) if total else (math.nan, 0.0)
