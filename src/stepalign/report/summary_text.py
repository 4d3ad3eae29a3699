"""What a comparison says in words: what was compared, what changed, and what a careful reader must know first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepalign.report.results import results_tables
from stepalign.report.results_schema import (
    Arm,
    Json,
    arms_of,
    level_text,
    list_of,
    rows_of,
    seeds_text,
    trained,
)
from stepalign.report.text import (
    count,
    decimal,
    listing,
    number,
)

SMALL_TEST_SET = 100


def headline(results: Json) -> str:
    """The arms by name. Labels that hold commas themselves are set apart by dots."""
    labels = [arm.label for arm in trained(arms_of(results))]
    return (" · ".join(labels) if any("," in label for label in labels) else listing(labels)) or "Comparison"


def summary_sentences(results: Json) -> list[str]:
    """What was compared, in plain words."""
    arms = trained(arms_of(results))
    if results.get("kind") == "runs":
        return [_runs_sentence(results, arms)]
    problems = results.get("problems") or {}
    solver = f"the same solver ({results['model']})" if results.get("model") else "the same solver"
    opening = f"{_number_word(len(arms)).capitalize()} way{'s' * (len(arms) != 1)} of training {solver}, compared"
    if number(problems.get("test")) is not None:
        opening += f" on {count(problems['test'])} test problems it never trained on"
    if results.get("num_samples") is not None:
        opening += f", with n = {results['num_samples']} completions per problem"
    if number(results.get("temperature")) is not None:
        opening += f" at temperature {decimal(results['temperature'], 1)}"
    training = []
    if number(problems.get("train")) is not None:
        training.append(f"on {count(problems['train'])} problems")
    if results.get("seeds"):
        training.append(f"with {seeds_text(results['seeds'])}")
    sentences = [opening + "."]
    if training:
        sentences.append(f"Every arm starts from the same weights and trains {' '.join(training)}.")
    return sentences


def _runs_sentence(results: Json, arms: Sequence[Arm]) -> str:
    """Runs that nobody planned as a comparison: nothing is promised about what they share."""
    steps = max((number(run.get("steps")) or 0.0 for arm in arms for run in arm.runs), default=0.0)
    opening = (
        "One training run" if len(arms) == 1 else f"{_number_word(len(arms)).capitalize()} training runs side by side"
    )
    solver = f" of {results['model']}" if results.get("model") else ""
    return f"{opening}{solver}, {count(steps)} optimizer steps" + (" at most." if len(arms) > 1 else ".")


def _number_word(amount: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[amount] if amount < len(words) else str(amount)


def changes(results: Json) -> list[tuple[Arm, str]]:
    """For each trained arm one line: from where to where in Avg@n, and what it took."""
    table = results_tables(results)[0]
    column = next((index for index, (name, _) in enumerate(table.columns) if name.startswith("Avg")), None)
    base = next((row for row in table.rows if row.arm.name == "base"), None)
    out = []
    for arm in trained(arms_of(results)):
        rows = [row for row in table.rows if row.arm.name == arm.name]
        if len(rows) != 1 or column is None or rows[0].cells[column].missing:
            out.append((arm, "No result yet" if len(rows) < 2 else "Measured for each seed, not yet pooled"))
            continue
        row = rows[0]
        cell, name = row.cells[column], table.columns[column][0]
        text = f"{name} "
        if base is not None and not base.cells[column].missing:
            text += f"{base.cells[column].text} % → "
        text += f"{cell.text} %" + (f" ({level_text(results)} interval {cell.interval})" if cell.interval else "")
        steps = [number(run.get("steps")) for run in arm.runs if number(run.get("steps")) is not None]
        costs = [f"{count(max(step for step in steps if step is not None))} optimizer steps"] if steps else []
        rollouts, _, wall, _ = row.cells[-4:]
        costs += [f"{rollouts.text} rollouts"] if not rollouts.missing else []
        costs += [f"{wall.text} s of training"] if not wall.missing else []
        out.append((arm, text + (f", with {listing(costs)}" if costs else "")))
    return out


def notes(results: Json) -> list[str]:
    """What a careful reader must know before reading a number off this page."""
    out = []
    arms = trained(arms_of(results))
    missing = incomplete(results)
    if missing:
        what = "Not complete" if results.get("kind") == "runs" else "This comparison is not complete"
        out.append(f"{what}: {'; '.join(missing)}.")
    if len(arms) != 1:
        out.append(
            "No arm is called the best here: the order of arms depends on the axis. An optimizer step of one arm can"
            " cost many times the solver rollouts of another’s, so every curve is drawn over optimizer steps and over"
            " rollouts."
        )
    out += _budget_notes(results)
    test = number((results.get("problems") or {}).get("test"))
    if test is not None and test < SMALL_TEST_SET:
        out.append(
            f"Only {count(test)} test problems: one problem more or less moves a per-problem metric by"
            f" {100 / max(test, 1):.1f} points. Intervals are wide, and small gaps mean nothing."
        )
    if str(results.get("checkpoint_rule")) == "best_per_metric_on_test":
        out.append(
            "The checkpoint rule selects on the test set: each metric shows its own best checkpoint as judged by the"
            " very problems it is measured on. Such values are optimistic; compare them only with numbers chosen the"
            " same way."
        )
    if results.get("kind") == "runs" and len(arms) > 1 and not rows_of(results, "paired"):
        out.append("No paired differences: they need runs with equal seeds, tested on the same problems.")
    seeds = results.get("seeds") or []
    if len(seeds) == 1:
        out.append("One training seed: the intervals cover the choice of problems, not the luck of a training run.")
    if not arms:
        out.append("results.json lists no arm.")
    return out


BUDGETS = {
    "optimizer_steps": ("steps", "optimizer steps"),
    "rollouts": ("rollouts", "solver rollouts"),
    "completion_tokens": ("completion_tokens", "completion tokens"),
    "training_seconds": ("seconds", "seconds of training (sampling, feedback and learning, as the machine was loaded)"),
}
"""What a budget is read off in a run's totals, and its name."""


def _budget_notes(results: Json) -> list[str]:
    """What every arm could spend, how it ended, and which arm ended before."""
    budget = results.get("budget") or {}
    size, (key, name) = number(budget.get("size")), BUDGETS.get(str(budget.get("rule")), ("", ""))
    if size is None or not key:
        return []
    out = [f"Equal budget: {count(size)} {name} for every run. A run ends after the step in which it reaches them."]
    short = [
        arm.label
        for arm in trained(arms_of(results))
        if any((spent := number(run.get(key))) is not None and spent < size for run in arm.runs)
    ]
    if short:
        out.append(f"Ended at training.max_steps before the budget was spent: {listing(short)}.")
    return out


def incomplete(results: Json) -> list[str]:
    """What is still missing, in words; empty for a finished comparison."""
    out = []
    in_force = str(results.get("checkpoint_rule", "last"))
    measured = {
        (row.get("arm"), row.get("seed"))
        for row in rows_of(results, "metrics")
        if row.get("set", "test") == "test" and str(row.get("checkpoint_rule", in_force)) == in_force
    }
    names = {name for name, _ in measured}
    for arm in trained(arms_of(results)):
        if not arm.runs:
            out.append(f"{arm.label} has not run yet")
            continue
        have = {run.get("seed") for run in arm.runs}
        absent = [seed for seed in results.get("seeds") or [] if seed not in have]
        if absent and results.get("kind") != "runs":  # runs of their own have the seeds they have
            out.append(f"{arm.label} has no run for {seeds_text(absent)}")
        if arm.name not in names:
            out.append(f"{arm.label} has no test result yet")
    failures = results.get("failures")
    out += [f"{name} failed: {reason}" for name, reason in (failures if isinstance(failures, Mapping) else {}).items()]
    return out


def warnings_of(results: Json) -> list[tuple[Arm, str, str]]:
    """Every warning a run raised: arm, where, text. Masked samples and failed critiques are said here as well."""
    out = []
    for arm in arms_of(results):
        for run in arm.runs:
            where = f"seed {run.get('seed')}"
            out += [(arm, where, str(text)) for text in list_of(run, "warnings")]
            masked = run.get("masked") or {}
            if isinstance(masked, Mapping) and masked:
                each = ", ".join(f"{reason}: {count(amount)}" for reason, amount in masked.items())
                out.append((arm, where, f"samples masked from training ({each})"))
            critic = run.get("critic") or {}
            bad = {name: critic.get(name) for name in ("malformed", "failed") if number(critic.get(name))}
            if bad:
                each = ", ".join(f"{count(amount)} {name}" for name, amount in bad.items())
                out.append((arm, where, f"critiques not usable: {each} of {count(critic.get('calls'))}"))
    return out
