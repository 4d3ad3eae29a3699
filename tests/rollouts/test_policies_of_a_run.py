"""Policies and budgets inside a training run, with a critic on a real socket."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer

from stepalign.config import load_config
from stepalign.errors import BudgetSpentError
from stepalign.events import silent
from stepalign.stopping import StopRequest
from stepalign.verbs.attempts import read_attempts
from stepalign.verbs.critique import critique_rollouts
from stepalign.verbs.train import train_config

# The solver is random, so its attempts are wrong; this critique of "1 + 2 + 3" ends in a wrong answer, the others fit.
ANSWERS = {"1 + 2 + 3": "7", "4 - 1 - 1": "2", "9 + 9 - 9": "9"}


def scribe(text: str, asked: int) -> str:
    return f"say <step_1> {text} = {ANSWERS[text]} <answer> {ANSWERS[text]}"


@pytest.fixture
def serve(serve: Callable[..., FaultServer]) -> Callable[..., FaultServer]:
    return lambda script=scribe, **options: serve(script, **options)


def settings(server: FaultServer, *more: str) -> list[str]:
    return [
        "condition=stepalign",
        "prompts.critic='{{ question }}'",
        "critic.kind=endpoint",
        f'critic.base_urls=["{server.url}"]',
        "critic.model=critic",
        "critic.prices={prompt = 1.0, completion = 2.0}",
        "evaluation.at_start=false",
        *more,
    ]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("policy", "shown", "masked"),
    [
        ("use", "<step_1> 1 + 2 + 3 = 7 <answer> 7", ""),
        ("mask", None, "critique with the finding wrong_answer"),
        ("fall_back", "<step_1> 1 + 2 = 3 ; <step_2> 3 + 3 = 6 ; <answer> 6", ""),
    ],
)
def test_a_policy_decides_what_the_self_teacher_is_shown(
    serve: Callable[..., FaultServer],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    policy: str,
    shown: str | None,
    masked: str,
) -> None:
    words = settings(serve(), f"critic.policies.wrong_answer={policy}", "training.problems_per_step=3")
    config = load_config(str(write_recipe()), [*words, "training.max_steps=1"])
    out = tmp_path / "run"
    train_config(config, out, resume=False, listener=silent, stop=StopRequest())
    critiques = {row["rollout_id"]: row for row in lines(out / "critiques.jsonl")}
    contexts = {row["rollout_id"]: row for row in lines(out / "contexts.jsonl")}
    (wrong,) = [name for name, row in critiques.items() if "wrong_answer" in row["findings"]]
    assert (critiques[wrong]["policy"], critiques[wrong]["decided_by"]) == (
        (policy, "wrong_answer") if policy != "use" else ("use", "")
    )
    assert (contexts[wrong]["text"], contexts[wrong]["masked"]) == (shown, masked)
    assert contexts[wrong]["design"] == ("reference" if policy == "fall_back" else "step_aligned")
    assert all(row["text"] for name, row in contexts.items() if name != wrong)
    (numbers,) = lines(out / "metrics.jsonl")
    assert numbers["findings/wrong_answer"] == 1
    assert numbers["critiques/fall_back"] == (policy == "fall_back")
    assert numbers["masked"] == (policy == "mask")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["critic"]["findings"]["wrong_answer"] == 1
    assert summary["critic"]["cost"] == pytest.approx(3 * (10 * 1.0 + 5 * 2.0) / 1e6)
    assert summary["seconds_by_phase"]["feedback"] >= 0

    # The same critiques without training, from the run's own folder and recipe.
    again = read_attempts(out)
    assert again.config is not None
    assert [attempt.rollout_id for attempt in again.attempts] == [
        row["rollout_id"] for row in lines(out / "rollouts.jsonl")
    ]
    findings = critique_rollouts(again.config, again, tmp_path / "lint", resume=False)
    assert findings["policies"]["wrong_answer"] == policy
    stored = {row["rollout_id"]: row for row in lines(tmp_path / "lint" / "critiques.jsonl")}
    same = ("text", "findings", "policy", "case", "first_error")
    assert {n: [stored[n][k] for k in same] for n in stored} == {n: [critiques[n][k] for k in same] for n in critiques}


def test_a_run_without_money_stops_saved_and_goes_on_to_the_same_rollouts(
    serve: Callable[..., FaultServer], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    server, recipe, out = serve(), write_recipe(), tmp_path / "run"
    base = settings(server, "training.max_steps=2", "critic.concurrency=1", "critic.policies.wrong_answer=use")
    broke = load_config(str(recipe), [*base, "critic.token_budget=30"])
    with pytest.raises(BudgetSpentError, match="30 of 30 tokens"):
        train_config(broke, out, resume=False, listener=silent, stop=StopRequest())
    assert len(lines(out / "rollouts.jsonl")) == 2
    with pytest.raises(BudgetSpentError):  # the budget is the run's, not the process's
        train_config(broke, out, resume=True, listener=silent, stop=StopRequest())
    rich = load_config(str(recipe), [*base, "critic.token_budget=3000"])
    progress = train_config(rich, out, resume=True, listener=silent, stop=StopRequest())
    assert progress.step == 2

    straight = tmp_path / "straight"
    train_config(rich, straight, resume=False, listener=silent, stop=StopRequest())
    kept = [[row["text"] for row in lines(folder / "rollouts.jsonl")] for folder in (out, straight)]
    assert kept[0] == kept[1]
    asked = Counter(body["messages"][-1]["content"] for body in server.bodies)
    assert len(lines(out / "critic-ledger.jsonl")) <= 4
    assert sum(asked.values()) == sum(len(lines(f / "critic-ledger.jsonl")) for f in (out, straight))
