"""A comparison in words: its arms, their changes, and the caveats."""

from __future__ import annotations

from stepalign.report.results import Row, results_tables
from stepalign.report.results_schema import Arm, Results, metric_family, seeds_text
from stepalign.report.text import count, decimal, listing

SMALL_TEST_SET = 100
_NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def headline(results: Results) -> str:
    """The arms by name. Labels that hold commas themselves are set apart by dots."""
    labels = [arm.label for arm in results.trained]
    return (" · ".join(labels) if any("," in label for label in labels) else listing(labels)) or "Comparison"


def summary_sentences(results: Results) -> list[str]:
    """The comparison in plain words; of runs that were not planned as one, only their number and length."""
    arms = results.trained
    amount = (_NUMBER_WORDS[len(arms)] if len(arms) < len(_NUMBER_WORDS) else str(len(arms))).capitalize()
    if results.are_runs:
        steps = count(max((run.totals.get("steps") or 0.0 for arm in arms for run in arm.runs), default=0.0))
        opening = "One training run" if len(arms) == 1 else f"{amount} training runs side by side"
        solver = f" of {results.model}" if results.model else ""
        return [f"{opening}{solver}, {steps} optimizer steps" + (" at most." if len(arms) > 1 else ".")]
    solver = f"the same solver ({results.model})" if results.model else "the same solver"
    opening = f"{amount} way{'s' * (len(arms) != 1)} of training {solver}, compared"
    if "test" in results.problems:
        opening += f" on {count(results.problems['test'])} test problems it never trained on"
    if results.num_samples is not None:
        opening += f", with n = {results.num_samples} completions per problem"
    if results.temperature is not None:
        opening += f" at temperature {decimal(results.temperature, 1)}"
    training = [f"on {count(results.problems['train'])} problems"] if "train" in results.problems else []
    training += [f"with {seeds_text(results.seeds)}"] if results.seeds else []
    sentences = [opening + "."]
    if training:
        sentences.append(f"Every arm starts from the same weights and trains {' '.join(training)}.")
    return sentences


def changes(results: Results) -> list[tuple[Arm, str]]:
    """For each trained arm one line: from where to where in Avg@n, and what it took."""
    table = results_tables(results)[0]
    average = next(name for name in table.columns if metric_family(name) == "avg")
    base = next((row.cells[average] for row in table.rows if row.arm.name == "base"), None)
    before = f"{base.text} % → " if base is not None and not base.missing else ""
    out = []
    for arm in results.trained:
        rows = [row for row in table.rows if row.arm.name == arm.name]
        if arm.trained is False:
            text = f"No result: {_idle(arm)}"
        elif len(rows) > 1:
            text = "Measured for each seed, not yet pooled"
        elif not rows or rows[0].cells[average].missing:
            text = "No result yet"
        else:
            cell = rows[0].cells[average]
            interval = f" ({results.level} interval {cell.interval})" if cell.interval else ""
            text = f"{table.columns[average][0]} {before}{cell.text} %{interval}" + _spent(rows[0])
        out.append((arm, text))
    return out


def _idle(arm: Arm) -> str:
    """How many of an arm's steps had no gradient."""
    idle, steps = (sum(run.totals.get(name) or 0 for run in arm.runs) for name in ("steps_without_gradient", "steps"))
    return f"no gradient in {count(idle)} of {count(steps)} steps"


def _spent(row: Row) -> str:
    steps = [steps for run in row.arm.runs if (steps := run.totals.get("steps")) is not None]
    rollouts, seconds = row.cells["rollouts"], row.cells["seconds"]
    parts = [f"{count(max(steps))} optimizer steps"] if steps else []
    parts += [f"{rollouts.text} rollouts"] if not rollouts.missing else []
    parts += [f"{seconds.text} s of training"] if not seconds.missing else []
    return f", with {listing(parts)}" if parts else ""


def notes(results: Results) -> list[str]:
    """Caveats for the numbers of the page."""
    out = []
    arms = results.trained
    if missing := incomplete(results):
        subject = "Not complete" if results.are_runs else "This comparison is not complete"
        out.append(f"{subject}: {'; '.join(missing)}.")
    out += [
        f"{arm.label.removesuffix(' (did not train)')} did not train: {_idle(arm)}. Its numbers in results.json are"
        " those of the untrained solver and no result of its method."
        for arm in arms
        if arm.trained is False
    ]
    if len(arms) != 1:
        out.append(
            "No arm is called the best here: the order of arms depends on the axis. An optimizer step of one arm can"
            " cost many times the solver rollouts of another’s, so every curve is drawn over optimizer steps and over"
            " rollouts."
        )
    out += _budget_notes(results)
    test = results.problems.get("test")
    if test is not None and test < SMALL_TEST_SET:
        out.append(
            f"Only {count(test)} test problems: one problem more or less moves a per-problem metric by"
            f" {100 / max(test, 1):.1f} points. Intervals are wide, and small gaps mean nothing."
        )
    if results.checkpoint_rule == "best_per_metric_on_test":
        out.append(
            "The checkpoint rule selects on the test set: each metric shows its own best checkpoint as judged by the"
            " very problems it is measured on. Such values are optimistic; compare them only with numbers chosen the"
            " same way."
        )
    if results.are_runs and len(arms) > 1 and not results.paired:
        out.append("No paired differences: they need runs with equal seeds, tested on the same problems.")
    if len(results.seeds) == 1:
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
"""Rule of a budget -> the total of a run that is measured against it, and its name."""


def _budget_notes(results: Results) -> list[str]:
    """The budget of every arm, how runs end, and which arms ended before."""
    size, rule = results.budget.get("size"), results.budget.get("rule")
    if size is None or rule not in BUDGETS:
        return []
    total, name = BUDGETS[rule]
    out = [f"Equal budget: {count(size)} {name} for every run. A run ends after the step in which it reaches them."]
    spent = {arm.label: [run.totals.get(total) for run in arm.runs] for arm in results.trained}
    short = [label for label, values in spent.items() if any(value is not None and value < size for value in values)]
    if short:
        out.append(f"Ended at training.max_steps before the budget was spent: {listing(short)}.")
    return out


def incomplete(results: Results) -> list[str]:
    """The missing parts, in words; empty for a finished comparison."""
    out = []
    rule = results.checkpoint_rule
    measured = {row.arm for row in results.metrics if row.set == "test" and row.checkpoint_rule == rule}
    for arm in results.trained:
        if not arm.runs:
            out.append(f"{arm.label} has not run yet")
            continue
        absent = [seed for seed in results.seeds if seed not in {run.seed for run in arm.runs}]
        if absent and not results.are_runs:  # runs of their own have the seeds they have
            out.append(f"{arm.label} has no run for {seeds_text(absent)}")
        if arm.name not in measured:
            out.append(f"{arm.label} has no test result yet")
    out += [
        f"{results.arm(row['arm']).label}, seed {row['seed']}, is damaged: {row['reason']}" for row in results.damage
    ]
    return out + [f"{name} failed: {reason}" for name, reason in results.failures.items()]


def warnings_of(results: Results) -> list[tuple[Arm, str, str]]:
    """Every warning of a run as (arm, seed, text), with masked samples and unusable critiques among them."""
    out = []
    for arm in results.arms:
        for run in arm.runs:
            texts = list(run.warnings)
            if idle := run.totals.get("steps_without_gradient"):
                texts.append(f"no gradient in {count(idle)} of {count(run.totals.get('steps'))} steps")
            if run.masked:
                each = ", ".join(f"{reason}: {count(amount)}" for reason, amount in run.masked.items())
                texts.append(f"samples masked from training ({each})")
            bad = {name: run.totals.get(f"critic.{name}") for name in ("malformed", "failed")}
            if each := ", ".join(f"{count(amount)} {name}" for name, amount in bad.items() if amount):
                texts.append(f"critiques not usable: {each} of {count(run.totals.get('critic.calls'))}")
            out += [(arm, f"seed {run.seed}", text) for text in texts]
    return out
