"""A folder for the Hub: read back with the Hub's own card reader, and loaded by plain transformers and peft."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from stepalign.cli import app
from stepalign.errors import ConfigError
from stepalign.verbs.hub_folder import write_hub_folder


def cli(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_a_run_leaves_as_a_folder_that_others_load(
    rank: int, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changes: dict[str, object] = {"training__max_steps": 1, "evaluation__confidence": 0.9}
    changes |= {"data__judge__cache": "/var/judge.sqlite", "critic__base_urls": ["http://10.0.0.5:8000/v1"]}
    if rank:
        peft = pytest.importorskip("peft")
        changes |= {"model__lora__r": rank}
    run, out = tmp_path / "run", tmp_path / "my-solver"
    cli("train", str(write_recipe(**changes)), "--out", str(run))
    told = cli("export", str(run), "--to", "hub", "--out", str(out))
    assert f"hf upload OWNER/my-solver {out}" in told
    assert "licence" in told
    assert ("base_model_name_or_path" in told) == bool(rank)
    assert "recipe.toml: model.path" in told  # the paths of this machine are said
    assert "recipe.toml: data.judge.cache" in told
    assert "an address of a server: recipe.toml: critic.base_urls" in " ".join(told.split())

    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == ("peft" if rank else "transformers")
    assert card.data.base_model is None  # a folder of this machine is no name on the Hub
    evaluation = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()][-1]
    recorded = {row["metric"]: row for row in evaluation["metrics"]}
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    families = ("pass@", "maj@", "avg@")
    assert set(results) == {n for n in recorded if n.startswith(families) and recorded[n]["value"] is not None}
    assert {"pass@2", "maj@2", "avg@2"} <= set(results)
    assert results == {name: recorded[name]["value"] for name in results}
    for name in results:
        shown = [100 * recorded[name][key] for key in ("value", "low", "high")]
        assert "{:.1f} [{:.1f}, {:.1f}]".format(*shown) in card.text
    assert "on feedback by self-distillation (arXiv 2606.11173)" in card.text
    assert "90 % intervals" in " ".join(card.text.split())
    assert tomllib.loads((out / "recipe.toml").read_text())["condition"] == "refsol"

    loaded = peft.AutoPeftModelForCausalLM if rank else AutoModelForCausalLM
    model, tokenizer = loaded.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ours = loaded.from_pretrained(run / "final")
    ids = tokenizer("1 + 2 + 3", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, ours(ids).logits)
    with pytest.raises(ConfigError, match="there already"):
        write_hub_folder(run, out)

    weights = next((run / "final").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="not as training left it"):
        write_hub_folder(run, tmp_path / "other")


def test_a_card_claims_no_feedback_that_did_not_train(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    grpo = {"condition": "grpo", "sampling__num_generations": 2, "training__max_steps": 1}
    cli("train", str(write_recipe(**grpo)), "--out", str(run))
    write_hub_folder(run, out)
    card = ModelCard.load(out / "README.md")
    assert "trained on the verdicts of its attempts" in card.text
    assert "self-distillation" not in card.content


def test_a_folder_without_weights_or_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no final weights"):
        write_hub_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
