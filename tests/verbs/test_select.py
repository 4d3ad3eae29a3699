"""``stepalign select`` on the embedded task: the real solver, a real death, and a run on what was selected."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from warm import python

from stepalign.config import Config, load_config
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.domains.table import load_sets
from stepalign.errors import ConfigError, LockedError
from stepalign.events import Event, silent
from stepalign.models.sampling.local import LocalSampler
from stepalign.problems.loading import load_problems
from stepalign.records import Attempt, Critique
from stepalign.report.funnel import funnel_table, write_funnel
from stepalign.verbs import select as module
from stepalign.verbs.select import select

SETTINGS = [
    *("data.max_train=24", "selection.num_samples=6", "selection.critic_solves=true", "selection.test_share=0.4"),
    "selection.average_below=0.8",
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)


def config(*more: str) -> Config:
    return load_config("arithmetic", [*SETTINGS, *more])


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("selection") / "out"
    chunk, module.CHUNK = module.CHUNK, 8
    select(config(), out, resume=False, listener=silent)
    module.CHUNK = chunk
    return out


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_kept_lies_inside_the_band(selected: Path) -> None:
    samples = {row["problem_id"]: row for row in rows(selected / "samples.jsonl")}
    kept = {p.question: p for name in ("train", "test") for p in load_problems(selected / f"{name}.jsonl").problems}
    assert len(samples) == 24
    assert 2 < len(kept) < 24
    everything = {p.problem_id: p for p in load_sets(config().data)["train"].problems}
    for name, row in samples.items():
        # The truth by arithmetic of our own, not by the grader: the last word of the attempt.
        chain = arithmetic.parse_question(everything[name].question)
        right = sum(text.split()[-1:] == [str(arithmetic.make_problem(chain, rho=0.0).answer)] for text in row["texts"])
        assert right == row["verdicts"].count("correct")
        assert len(row["texts"]) == len(row["lengths"]) == 6
        inside = 0 < right / 6 < 0.8 and sum(row["formatted"]) / 6 > 0.5
        question = everything[name].question
        assert (question in kept) == inside
        if inside:
            assert kept[question].metadata["avg@6"] == right / 6
            assert kept[question].answer == everything[name].answer
            assert kept[question].reference == everything[name].reference


def test_the_manifest_says_what_was_done_with_what(selected: Path) -> None:
    manifest = json.loads((selected / "manifest.json").read_text())
    assert sum(file["problems"] for file in manifest["files"].values()) == manifest["funnel"][-1]["kept"]
    assert [row["gate"] for row in manifest["funnel"]] == [
        *("reading", "not_hopeless", "not_solved", "formatted", "critic_solves")
    ]
    assert manifest["selection"]["num_samples"] == 6
    assert len(manifest["solver"]["weights"]["model.safetensors"]) == 64
    assert manifest["critic"] == {"kind": "programmatic", "model": ""}
    assert json.loads((selected / "funnel.json").read_text())["funnel"] == manifest["funnel"]


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bytes_and_samples_nothing_twice(
    selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom stepalign.config import load_config\n"
        "from stepalign.verbs import select as m\n"
        "m.CHUNK = 8\n"
        "def listener(event):\n"
        "    if event.name == 'sampling' and event.done == 16: os._exit(9)\n"
        f"m.select(load_config('arithmetic', {SETTINGS!r}), Path({str(out)!r}), resume=False, listener=listener)\n"
    )
    died = subprocess.run([*python(), "-c", script], capture_output=True, text=True, check=False)
    assert died.returncode == 9, died.stderr
    assert len(rows(out / "samples.jsonl")) == 16
    with (out / "samples.jsonl").open("ab") as file:
        file.write('{"problem_id": "torn", "verdicts": ["größ'.encode()[:-1])
    drawn: list[int] = []
    sample = LocalSampler.sample
    monkeypatch.setattr(
        LocalSampler, "sample", lambda self, prompts, **k: drawn.append(len(prompts)) or sample(self, prompts, **k)
    )
    with pytest.raises(LockedError, match="already holds this selection"):
        select(config(), out, resume=False, listener=silent)
    select(config(), out, resume=True, listener=silent)
    assert drawn == [8]
    for name in ("samples.jsonl", "critic-solutions.jsonl", "train.jsonl", "test.jsonl", "manifest.json"):
        assert (out / name).read_bytes() == (selected / name).read_bytes(), name
    select(config(), out, resume=True, listener=silent)  # and once more changes nothing and draws nothing
    assert drawn == [8]
    assert (out / "manifest.json").read_bytes() == (selected / "manifest.json").read_bytes()


def test_a_run_trains_on_what_was_selected(selected: Path, tmp_path: Path) -> None:
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    settings = [f"data.train={selected}", f"data.test={selected}", "data.validation=", "condition=refsol"]
    settings = [*(s for s in settings if not s.endswith("=")), "data.columns=gsm8k"]  # the folder knows its own layout
    small = ["training.max_steps=1", "training.problems_per_step=2", "evaluation.num_samples=2", "evaluation.ks=[1]"]
    run = load_config(None, [*settings, *small])
    sets = load_sets(run.data)
    assert [len(sets[name].problems) for name in ("train", "test")] == [
        len(rows(selected / f"{name}.jsonl")) for name in ("train", "test")
    ]
    train_config(run, tmp_path / "run", resume=False, listener=silent, stop=StopRequest())
    trained = {row["problem_id"] for row in rows(tmp_path / "run" / "rollouts.jsonl")}
    assert trained <= {p.problem_id for p in sets["train"].problems}


def test_a_changed_or_missing_file_is_refused(selected: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", "train.jsonl", "test.jsonl"):
        (copy / name).write_bytes((selected / name).read_bytes())
    load_sets(load_config(None, [f"data.train={copy}"]).data)
    with pytest.raises(ConfigError, match="has no validation problems"):
        load_sets(load_config(None, [f"data.train={copy}", f"data.validation={copy}"]).data)
    (copy / "train.jsonl").write_bytes((selected / "train.jsonl").read_bytes()[:-1])
    with pytest.raises(ConfigError, match="were changed or removed"):
        load_sets(load_config(None, [f"data.train={copy}"]).data)
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(ConfigError, match="no manifest of a selection"):
        load_sets(load_config(None, [f"data.train={copy}"]).data)


class Moody:
    """A critic that solves the first problem it is asked, misses the second, and is down for the others at first."""

    name = "moody"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.down = True

    async def critique(self, attempt: Attempt, *, earlier: Critique | None = None, complaint: str = "") -> Critique:
        assert attempt.text == ""
        problem = attempt.problem
        self.asked.append(problem.problem_id)
        place = len(self.asked)
        failed = self.down and place > 2
        text = "" if failed else f"<step_1> 1 + 1 = 2 ; <answer> {problem.answer if place != 2 else 'nothing'}"
        return Critique(
            rollout_id=attempt.rollout_id,
            critic="moody",
            status="failed" if failed else "ok",
            text=text,
            raw=f"<think>\\boxed{{0}}</think>{text}",
            reason="down" if failed else "",
        )

    def close(self) -> None: ...


def test_moved_gates_select_anew_from_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    narrow = [*SETTINGS, "selection.critic_solves=false", "selection.average_below=0.01"]
    with pytest.raises(ConfigError, match="no problem is left") as told:
        select(load_config("arithmetic", narrow), out, resume=False, listener=silent)
    assert "--resume" in str(told.value.hint)
    measured = (out / "samples.jsonl").read_bytes()
    monkeypatch.setattr(LocalSampler, "sample", None)  # nothing is drawn again
    wide = load_config("arithmetic", [*narrow, "selection.average_below=0.8"])
    manifest = select(wide, out, resume=True, listener=silent)
    assert (out / "samples.jsonl").read_bytes() == measured
    assert (
        manifest["selection"]["average_below"] == load_config(str(out / "config.toml")).selection.average_below == 0.8
    )
    assert manifest["files"]["train"]["problems"] > 0
    with pytest.raises(LockedError, match=r"selection\.num_samples"):
        select(load_config("arithmetic", [*narrow, "selection.num_samples=7"]), out, resume=True, listener=silent)


def test_a_silent_critic_is_asked_again_and_is_never_a_wrong_answer(
    selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = Moody()
    heard: list[Event] = []
    monkeypatch.setattr(module, "make_critic", lambda *_, **__: critic)
    out = tmp_path / "out"
    first = select(config(), out, resume=False, listener=heard.append)["funnel"][-1]
    asked = first["before"]
    assert asked > 2
    assert (first["fell"], first["unknown"], first["kept"]) == (1, asked - 2, 1)
    assert any("did not answer" in event.text for event in heard)
    critic.down = False
    again = select(config(), out, resume=True, listener=heard.append)["funnel"][-1]
    assert (again["before"], again["fell"], again["unknown"], again["kept"]) == (asked, 1, 0, asked - 1)
    assert len(critic.asked) == asked + (asked - 2)  # only those that had no reply
    select(config(), out, resume=True, listener=heard.append)
    assert len(critic.asked) == 2 * asked - 2


def test_an_empty_selection_says_where_the_problems_went(tmp_path: Path) -> None:
    # A share that the recipe sets aside for validation later is selected from as well: all 24 are looked at.
    recipe = config("selection.pass_rate_above=0.9", "data.validation_share=0.5")
    with pytest.raises(ConfigError, match=r"no problem is left to train on .*pass_rate_72b_tir > 0\.9: 0 of 24 left"):
        select(recipe, tmp_path / "out", resume=False, listener=silent)
    assert not (tmp_path / "out" / "samples.jsonl").exists()  # nobody paid for completions of nothing


def test_the_page_and_the_table_show_every_gate(selected: Path, tmp_path: Path) -> None:
    from rich.console import Console

    manifest = json.loads((selected / "manifest.json").read_text())
    manifest["source"]["name"] = "<script>alert(1)</script>"
    html = write_funnel(manifest, tmp_path / "funnel.html").read_text()
    assert "<script" not in html
    assert "default-src &#39;none&#39;" in html
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(funnel_table(manifest["funnel"]))
    table = console.export_text()
    for row in manifest["funnel"]:
        assert escape(row["label"]) in html
        assert row["label"] in table
        assert f"<td>{row['before']}</td><td>{row['fell']}</td><td>0</td><td>{row['kept']}</td>" in html
