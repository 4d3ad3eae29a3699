"""The page names the budget and the arms that did not spend it."""

from __future__ import annotations

import report_fixtures as fixtures

from stepalign.report.results_schema import read_results
from stepalign.report.summary_text import notes


def test_the_budget_and_the_arms_that_did_not_spend_it_are_named() -> None:
    results = fixtures.make_results()
    spent = {run["completion_tokens"] for arm in results["arms"] for run in arm["runs"]}
    results["budget"] = {"rule": "completion_tokens", "size": min(spent)}
    told = " ".join(notes(read_results(results)))
    assert f"Equal budget: {min(spent):,} completion tokens for every run" in told
    assert "before the budget was spent" not in told
    results["budget"] = {"rule": "completion_tokens", "size": max(spent) + 1}
    told = " ".join(notes(read_results(results)))
    assert "Ended at training.max_steps before the budget was spent" in told
    assert all(arm["label"] in told for arm in results["arms"])
    results["budget"] = {"rule": "optimizer_steps", "size": None}
    assert "Equal budget" not in " ".join(notes(read_results(results)))
