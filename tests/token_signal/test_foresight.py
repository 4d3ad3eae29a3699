"""Points of a comparison from files made by hand, and their correlation with scipy's."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import spearmanr

from stepalign.token_signal.foresight import foresight, trained_contexts

ARMS: dict[str, tuple[str, dict[str, Any], bool | None, float, float | None]] = {
    # arm: condition, keys that it changes, whether it trained, gain, share of the signal in the wrong step
    "aligned": ("stepalign", {}, True, 0.7, 0.55),
    "solution": ("refsol", {"condition": "refsol"}, True, 0.3, 0.32),
    "copy": ("full_repeat", {"condition": "full_repeat"}, True, -0.1, 0.24),
    "quote": ("marked_correction", {"condition": "marked_correction"}, True, 0.4, 0.49),
    "verdict": ("verdict", {"condition": "verdict"}, True, -0.02, None),
    "other-route": ("refsol", {"condition": "refsol", "data.rho": 1.0}, True, 0.5, 0.32),
    "nothing": ("null", {"condition": "null"}, False, 0.0, 0.15),
    "reward": ("grpo", {"condition": "grpo"}, True, 0.2, None),
}
CONTEXTS = {"stepalign": "step_aligned", "refsol": "reference", "grpo": "not scored"}


def results() -> dict[str, Any]:
    def gain(arm: str, metric: str, value: float) -> dict[str, Any]:
        numbers = {"difference": value, "low": value - 0.1, "high": value + 0.1, "seeds": [0, 1]}
        return {"a": arm, "b": "base", "metric": metric, "checkpoint_rule": "last", **numbers}

    rows = [gain(name, "avg@4", value) for name, (_, _, _, value, _) in ARMS.items()]
    wrong_rows = [gain(name, "pass@4", 9.0) for name in ARMS]
    against_another = {**gain("aligned", "avg@4", 9.0), "b": "solution"}
    best = {**gain("aligned", "avg@4", 9.0), "checkpoint_rule": "best_per_metric_on_test"}
    arms = [
        {"name": name, "label": name.title(), "condition": condition, "config_diff": keys, "trained": trained}
        for name, (condition, keys, trained, _, _) in ARMS.items()
    ]
    return {"num_samples": 4, "arms": arms, "paired": [*wrong_rows, against_another, best, *rows]}


def signal() -> dict[str, Any]:
    entries = {CONTEXTS.get(condition, condition): share for condition, _, _, _, share in ARMS.values()}
    return {
        "localisation": [
            {"context": name, "numbers": [{"name": "share_of_abs_signal_in_wrong_step", "value": share}]}
            for name, share in entries.items()
        ]
    }


def test_a_point_is_an_arm_that_differs_in_its_context_alone_and_has_trained() -> None:
    points = trained_contexts(results(), signal(), "toy")
    assert [(p.context, p.gain, p.seeds) for p in points] == [
        ("step_aligned", 0.7, 2),
        ("reference", 0.3, 2),
        ("full_repeat", -0.1, 2),
        ("marked_correction", 0.4, 2),
        ("verdict", -0.02, 2),
    ]
    assert (points[0].comparison, points[0].label, points[0].low) == ("toy", "Aligned", pytest.approx(0.6))


def test_the_correlation_is_over_the_points_that_define_the_number() -> None:
    found = foresight(trained_contexts(results(), signal()))
    share = found["share_of_abs_signal_in_wrong_step"]
    assert share.num_pairs == 4
    assert share.value == pytest.approx(spearmanr([0.55, 0.32, 0.24, 0.49], [0.7, 0.3, -0.1, 0.4]).statistic)  # pyright: ignore
    assert share.p_value == pytest.approx(2 / 24)  # of 24 orders, this one and its reverse
    assert found["auroc_wrong_step"].num_pairs == 0
    assert math.isnan(found["auroc_wrong_step"].value)
