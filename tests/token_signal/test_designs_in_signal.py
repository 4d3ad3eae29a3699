"""Every context design on the rollouts that a run has kept: siblings are siblings, and no design asks in vain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepalign.config import changed, load_config
from stepalign.domains.table import load_set
from stepalign.errors import ConfigError
from stepalign.feedback.designs import DESIGNS, group_rollouts
from stepalign.stopping import StopRequest
from stepalign.token_signal.files import read_rows
from stepalign.verbs.progress import Display
from stepalign.verbs.signal.base import write_signal
from stepalign.verbs.signal.collect import more_critiques
from stepalign.verbs.signal.from_run import analyse_run, stored_rollouts
from stepalign.verbs.train import train_config

SETTINGS = {
    "condition": "grpo",
    "sampling.num_generations": 4,
    "training.max_steps": 2,
    "training.problems_per_step": 3,
    "evaluation.at_start": False,
    "evaluation.num_samples": 1,
    "data.test": None,
    "data.validation": None,
}
OF_TURNS = ("hindsight", "tool_error")  # nothing to show in a single turn
SCORED = [name for name in DESIGNS if name not in ("none", "execution_trace", *OF_TURNS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of GRPO with the embedded solver: groups of four, and not one critique."""
    folder = tmp_path_factory.mktemp("run") / "grpo"
    config = changed(load_config("arithmetic"), SETTINGS)
    train_config(config, folder, resume=False, listener=Display("run"), stop=StopRequest())
    return folder


@pytest.mark.slow
def test_every_design_scores_the_rollouts_of_a_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "signal"
    analyse_run(run, out, contexts=tuple(SCORED), model="", num=24, settings=("signal.top_k=0",))
    rows = list(read_rows(out))
    assert {row["context"] for row in rows} == set(SCORED)
    problems = {p.problem_id: p for p in load_set(load_config(str(run / "config.toml")).data, "train").problems}
    pairs = stored_rollouts(run, problems, 24)
    groups = group_rollouts([rollout for rollout, _ in pairs])
    assert [len(group) for group in groups] == [4] * 6
    with_sibling = {
        pairs[i][0].rollout_id
        for group in groups
        for i in group
        if any(pairs[j][0].verdict == "correct" for j in group if j != i)
    }
    assert 0 < len(with_sibling) < 24
    scored = {row["rollout_id"] for row in rows if row["context"] == "peer_demonstration"}
    assert scored == with_sibling
    for name in ("step_aligned", "hint", "no_repeat", "worked_example"):
        assert sum(row["context"] == name for row in rows) == 24, name


def test_the_forms_of_critique_are_asked_for_once_each(run: Path) -> None:
    config = load_config(str(run / "config.toml"))
    problems = {p.problem_id: p for p in load_set(config.data, "train").problems}
    pairs = stored_rollouts(run, problems, 24)
    found = more_critiques(config, None, pairs, SCORED)
    forms = [critique.form for critique in found]
    assert sorted(set(forms)) == ["comment", "edit", "hint", "paraphrase", "trace", "turns"]
    assert len(forms) == 6 * 24
    traces = [(r, c) for (r, _), c in zip(pairs, found[:24], strict=True)]
    others = {c.form for c in more_critiques(config, None, traces, SCORED)}
    assert others == {"comment", "edit", "hint", "paraphrase", "turns"}


def test_a_comparison_draws_groups_where_a_context_shows_siblings(tmp_path: Path) -> None:
    config = changed(
        load_config("arithmetic"),
        {
            "signal.contexts": ["step_aligned", "peer_demonstration", "hint"],
            "signal.num_rollouts": 24,
            "signal.top_k": 0,
        },
    )
    page = write_signal(config, tmp_path)
    found = json.loads(page.read_text(encoding="utf-8"))
    scored = {entry["context"]: entry["num_rollouts"] for entry in found["localisation"]}
    assert scored["step_aligned"] == scored["hint"] == 24
    assert 0 < scored["peer_demonstration"] <= 24


@pytest.mark.slow
def test_the_strongest_tokens_of_a_run_get_continuations_of_both_versions(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "signal"
    names = ("step_aligned", "fixed_negative")
    analyse_run(run, out, contexts=names, num=8, counterfactual=2, settings=("signal.num_shown=2",))
    signal = json.loads((out / "signal.json").read_text(encoding="utf-8"))
    found = signal["counterfactual"]
    assert list(found) == ["step_aligned"]  # the other one shows nothing that could be written instead
    rows = found["step_aligned"]["rows"]
    assert 0 < len(rows) == found["step_aligned"]["spikes"] <= 8
    assert len({row["rollout_id"] for row in rows}) == len(rows)
    lines = {row["rollout_id"]: row for row in read_rows(out) if row["context"] == "step_aligned"}
    for row in rows:
        line = lines[row["rollout_id"]]
        assert line["tokens"][row["position"]].strip() == row["token"].strip()
        assert line["log_ratio"][row["position"]] == pytest.approx(row["log_ratio"], abs=1e-5)
        assert row["log_ratio"] < 0
        assert row["replacement"] != row["token"]
        assert row["as_written"]["value"] in (0.0, 0.5, 1.0)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert f'"{rows[0]["rollout_id"]} step_aligned {rows[0]["position"]}"' in page
    settings = ("signal.top_k=0",)
    with pytest.raises(ConfigError, match="no alternatives are kept"):
        analyse_run(run, tmp_path / "without", contexts=names, num=4, counterfactual=2, settings=settings)
