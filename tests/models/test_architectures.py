"""Sampler and scorer on every architecture of docs/models.md, against plain forward passes and ``generate``."""

from __future__ import annotations

import pytest
import torch

import architectures

KNOWN = list(architectures.ARCHITECTURES)
REFUSED = {
    "Gemma 2": "final_logit_softcapping = 30",
    "Phi-2": "bias",
    "Falcon": "its attention is part of the model's own code",
    "Mamba": "a state from token to token",
    "LFM2": "layers of the type conv",
    "Qwen3-Next": "a state from token to token",
}


@pytest.mark.parametrize("name", KNOWN)
def test_sampler_scorer_and_model_agree_or_the_model_is_refused_by_name(name: str) -> None:
    torch.set_num_threads(1)
    row = architectures.measure(name)
    if name in REFUSED:
        assert REFUSED[name] in row.refused
        return
    assert not row.refused
    assert row.sampled_error < 3e-5
    assert row.scored_error < 3e-5
    assert row.padded_error < 3e-5
    assert row.greedy


def test_the_page_has_a_row_for_each() -> None:
    page = architectures.PAGE.read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row in KNOWN] == KNOWN
    assert "| NO |" not in page
