"""``stepalign signal FILE``: numbers against two forward passes by hand, resumed files bit by bit, messages."""

from __future__ import annotations

import html
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from patience import PATIENCE
from rich.console import Console
from safetensors.numpy import load_file
from transformers import AutoTokenizer
from warm import python

from stepalign.config import Config, changed
from stepalign.domains.arithmetic.solver import build_tiny_solver
from stepalign.errors import ConfigError, LockedError
from stepalign.events import Event
from stepalign.models.load import Solver, find_model, save_solver
from stepalign.models.prompts import unknown_id
from stepalign.report.page import token_html
from stepalign.report.terminal import print_rollout
from stepalign.token_signal.files import load_signal
from stepalign.verbs.configs import config_for_file
from stepalign.verbs.signal import folder as folders
from stepalign.verbs.signal.from_jsonl import analyse_file
from stepalign.verbs.signal.rows import find_file

EXAMPLES = ("clock", "correct", "fizzbuzz", "integral", "one-wrong-step", "wrong-approach")


@pytest.fixture(scope="module")
def solver(byte_tokenizer: Any) -> Solver:
    """A random model: what it says means nothing, how it is computed does."""
    torch.set_num_threads(1)
    made = build_tiny_solver(
        byte_tokenizer, seed=0, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48,
        max_positions=4096,
    )  # fmt: skip
    with torch.no_grad():
        made.model.get_input_embeddings().weight.mul_(8)
    return Solver(made.model.eval(), made.tokenizer)


@pytest.fixture(scope="module")
def model(solver: Solver, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_solver(solver, path)
    return str(path)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines_of(heard: list[Event]) -> list[str]:
    return [event.text for event in heard if event.kind == "line" and not event.text.startswith("solver ")]


ROW = {
    "question": "What is 3 + 4?",
    "completion": "Let us see: 3 + 4 = 8, größer.",
    "contexts": {"critique": "It should read 3 + 4 = 7.", "same": "It should read 3 + 4 = 7.", "other": "No."},
    "wrong_text": "= 8",
}


def test_the_numbers_are_those_of_two_forward_passes(solver: Solver, model: str, tmp_path: Path) -> None:
    config, source = config_for_file(model, "", ["sampling.temperature=1.3", "signal.top_k=3"])
    page = analyse_file(write(tmp_path / "in.jsonl", ROW), tmp_path / "out", config, prompts_from=source)
    rows = {row["context"]: row for row in lines(tmp_path / "out" / "signal.jsonl")}
    assert list(rows) == ["critique", "same", "other"]

    tokenizer = solver.tokenizer
    ids = tokenizer.encode(ROW["completion"], add_special_tokens=False)
    head = json.loads((tmp_path / "out" / "signal.json").read_text(encoding="utf-8"))["prompts"]["example"]

    def by_hand(prompt: str) -> torch.Tensor:
        whole = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False) + ids])
        with torch.no_grad():
            logits = solver.model(whole).logits[0, -len(ids) - 1 : -1].double()
        return (logits / 1.3).log_softmax(-1)

    student, teacher = by_hand(head["student"]), by_hand(head["self_teacher"])
    taken = torch.arange(len(ids)), torch.tensor(ids)
    row = rows["critique"]
    assert row["token_ids"] == ids
    assert "".join(row["tokens"][i] for i in range(len(ids)) if row["spans"][i] != row["spans"][i - 1]) == row["text"]
    expected = {
        "log_ratio": (teacher - student)[taken],
        "student_log_prob": student[taken],
        "teacher_log_prob": teacher[taken],
        "forward_kl": (teacher.exp() * (teacher - student)).sum(-1),
        "student_entropy": -(student.exp() * student).sum(-1),
        "teacher_entropy": -(teacher.exp() * teacher).sum(-1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(row[name], values.numpy(), atol=2e-5, err_msg=name)
    for step, entry in enumerate(row["steps"]):
        total = sum(a for a, s in zip(row["log_ratio"], row["step"], strict=True) if s == step)
        assert entry["sum"] == pytest.approx(total, abs=1e-4)
    top = teacher.topk(3)
    arrays = load_file(tmp_path / "out" / "arrays" / "000000.safetensors")
    assert (arrays["critique/top_ids"] == top.indices.numpy()).all()
    np.testing.assert_allclose(arrays["critique/top_log_probs"], top.values.numpy(), atol=2e-5)
    np.testing.assert_allclose(arrays["critique/log_ratio"], row["log_ratio"], atol=1e-6)
    # What reads the same teaches the same, to the last bit.
    assert (arrays["critique/log_ratio"] == arrays["same/log_ratio"]).all()
    assert "3 + 4 = 7" in head["self_teacher"]
    assert page.name == "index.html"


def test_a_context_that_changes_nothing_gives_exactly_zero(model: str, tmp_path: Path) -> None:
    config, source = config_for_file(model, "", ["prompts.self_teacher={{ question }}"])
    analyse_file(write(tmp_path / "in.jsonl", ROW), tmp_path / "out", config, prompts_from=source)
    for row in lines(tmp_path / "out" / "signal.jsonl"):
        assert set(row["log_ratio"]) == {0.0}
        assert set(row["forward_kl"]) == {0.0}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_shipped_examples_run(name: str, model: str, tmp_path: Path) -> None:
    """Mechanics only: the model is random. What they show needs a model that has learnt to read."""
    config, source = config_for_file(model, "", None)
    analyse_file(find_file(name), tmp_path / "out", config, prompts_from=source)
    rows = lines(tmp_path / "out" / "signal.jsonl")
    assert {"step_aligned", "reference"} <= {row["context"] for row in rows}
    first = rows[0]
    assert first["text"] == lines(find_file(name))[0]["completion"]
    statuses = {step["label"]: step["status"] for step in first["steps"]}
    if name == "fizzbuzz":
        line = first["text"].splitlines()[3]
        assert line.strip() == "if i % 3 = 0:"
        at = first["text"].index("=")
        assert first["text"][at - 4 : at + 3] == "% 3 = 0"
        assert [first["spans"][i][0] <= at < first["spans"][i][1] for i in first["wrong_tokens"]] == [True]
        (wrong,) = (step for step in first["steps"] if step["status"] == "wrong")
        assert first["text"][wrong["start"] : wrong["end"]] == line + "\n"
    elif name == "one-wrong-step":
        assert statuses == {"1": "right", "2": "right", "3": "wrong", "4": "after_error", "answer": "after_error"}
    elif name == "clock":
        assert [*statuses.values()] == ["right"] * 3 + ["wrong"] + ["after_error"] * 3
    elif name in ("correct", "integral"):
        assert set(statuses.values()) == {"right"}
    elif name == "wrong-approach":
        assert set(statuses.values()) == {"unknown"}  # no step of it can be kept
        assert len(first["steps"]) == 5
    assert first["case"] in ("correct", "one_wrong_step", "wrong_approach")


def many(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i}",
            "question": f"What is {i} + 4?",
            "completion": f"Step 1: {i} + 4 = {i + 5}. " * (1 + i % 3),
            "contexts": {"critique": f"It is {i + 4}.", "half": f"Look at {i}." if i % 2 else None},
            "wrong_step": "1",
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("torn", ["after the arrays", "inside a line", "between lines"])
def test_a_killed_analysis_goes_on_to_the_same_bytes(
    torn: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "SHARD_TOKENS", 60)
    config, _ = config_for_file(model, "", None)
    source = write(tmp_path / "in.jsonl", *many(9))
    whole = tmp_path / "whole"
    analyse_file(source, whole, config)
    shards = sorted(path.name for path in (whole / "arrays").iterdir())
    assert len(shards) > 3

    scored: list[int] = []
    killed = tmp_path / "killed"

    def die(event: Event) -> None:
        scored.extend([event.done] if event.kind == "progress" else [])
        if len(scored) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyse_file(source, killed, config, listener=die)
    (killed / "sums.json").unlink()  # a killed command leaves none
    records = killed / "signal.jsonl"
    if torn == "after the arrays":
        (killed / "arrays" / shards[2]).write_bytes(b"half")
    elif torn == "inside a line":
        records.write_bytes(records.read_bytes()[:-40])
    else:
        records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:-1]))
    analyse_file(source, killed, config)
    for name in ("signal.jsonl", "signal.json", "index.html", *(f"arrays/{shard}" for shard in shards)):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_analysis_scores_nothing_again(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = config_for_file(model, "", None)
    source = write(tmp_path / "in.jsonl", *many(3))
    analyse_file(source, tmp_path / "out", config)
    monkeypatch.setattr(folders, "analyse_attempts", lambda *a, **k: pytest.fail("scored again"))
    analyse_file(source, tmp_path / "out", config)
    with pytest.raises(LockedError, match="something else"):
        analyse_file(write(tmp_path / "other.jsonl", *many(2)), tmp_path / "out", config)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"objective.teacher.model": "org/larger"}, "org/larger"),
        ({"objective.teacher.base_urls": ["http://me:secret@10.0.0.1:8000/v1"]}, "http://10.0.0.1:8000/v1"),
        ({"objective.teacher.model": "org/larger", "condition": "grpo"}, ""),
        ({}, ""),
    ],
)
def test_a_signal_names_the_other_teacher_that_a_run_trains_against(settings: dict[str, Any], named: str) -> None:
    heard = list[Event]()
    head = folders.another_teacher(changed(Config(), settings), heard.append)
    signal = {"format": 1, "contexts": [], "rollouts": [], **head}
    if not named:
        assert (head, heard) == ({}, [])
        assert "another teacher" not in token_html(signal)
        return
    (event,) = heard
    assert event.kind == "warning"
    assert named in event.text
    assert "secret" not in event.text
    assert f"another teacher, {named}; A here is the solver" in html.unescape(token_html(signal))


def test_what_a_context_has_nothing_for_is_said_and_not_drawn(model: str, tmp_path: Path) -> None:
    rows = [{**row, "contexts": {**row["contexts"], "never": ""}} for row in many(4)]
    heard: list[Event] = []
    config, _ = config_for_file(model, "", None)
    analyse_file(write(tmp_path / "in.jsonl", *rows), tmp_path / "out", config, listener=heard.append)
    assert lines_of(heard) == [
        "context half: 2 of 4 rollouts have none: no text in the file",
        "context never: nothing to score, left out: no text in the file",
    ]
    signal = json.loads((tmp_path / "out" / "signal.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in signal["contexts"]] == ["critique", "half"]
    assert [e["num_rollouts"] for e in signal["localisation"]] == [4, 2]
    names = {n["name"] for n in signal["localisation"][0]["numbers"]}
    assert "auroc_wrong_result" not in names  # no wrong passage is known anywhere
    assert "gini_abs_log_ratio" in names
    arrays = load_file(tmp_path / "out" / "arrays" / "000000.safetensors")
    start, end = arrays["offsets"][:2]
    assert np.isnan(arrays["half/log_ratio"][start:end]).all()
    assert not math.isnan(arrays["critique/log_ratio"][start:end].sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "no question"),
        ({"contexts": {}}, "no contexts"),
        ({"contexts": {"a": 3}}, "must be text"),
        ({"verdit": "correct"}, "unknown column 'verdit'"),
        ({"verdict": "yes"}, "unknown verdict"),
        ({"completion": None}, "no completion"),
        ({"completion_ids": [1, -2]}, "token ids"),
        ({"completion_ids": [10**6]}, "no token 1000000"),
        ({"wrong_text": "nowhere"}, "does not contain"),
        ({"wrong_step": "12"}, "no step '12'"),
        ({"prompts": {"studnt": "x"}}, "unknown key"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(change: dict[str, Any], message: str, model: str, tmp_path: Path) -> None:
    config, _ = config_for_file(model, "", None)
    source = write(tmp_path / "in.jsonl", {**ROW, **change})
    with pytest.raises(ConfigError, match=message) as caught:
        analyse_file(source, tmp_path / "out", config)
    assert caught.value.where
    assert not (tmp_path / "out").exists()  # the next try, mended, finds nothing half-begun


@pytest.mark.slow
def test_the_command(model: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", ROW)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python(), "-m", "stepalign", "signal", *words], capture_output=True, text=True, timeout=PATIENCE
        )

    done = run(str(source), "--model", model, "--out", str(tmp_path / "out"), "--contexts", "critique, other")
    assert done.returncode == 0, done.stderr
    assert "student prompt 'plain'" in done.stdout
    assert "--recipe" in done.stdout
    assert {row["context"] for row in lines(tmp_path / "out" / "signal.jsonl")} == {"critique", "other"}
    wrong = run(str(source), "--model", model, "--out", str(tmp_path / "x"), "--contexts", "critque")
    assert wrong.returncode == 2
    assert "where: --contexts" in wrong.stderr
    assert "did you mean critique?" in wrong.stderr


def test_rows_bring_their_own_prompts(model: str, tmp_path: Path) -> None:
    rows = [
        {**ROW, "id": "plain"},
        {**ROW, "id": "system", "system": "You are terse."},
        {**ROW, "id": "tagged", "prompts": {"student": "student", "self_teacher": "self_teacher"}},
    ]
    heard: list[Event] = []
    config, _ = config_for_file(model, "", None)
    analyse_file(write(tmp_path / "in.jsonl", *rows), tmp_path / "out", config, listener=heard.append)
    assert lines_of(heard) == ["2 of 3 rows bring prompts of their own"]
    found = {row["rollout_id"]: row for row in lines(tmp_path / "out" / "signal.jsonl") if row["context"] == "critique"}
    numbers = [tuple(found[name]["student_log_prob"]) for name in ("plain", "system", "tagged")]
    assert len(set(numbers)) == 3


def test_unknown_examples_are_refused(make_solver: Callable[..., Solver]) -> None:
    with pytest.raises(ConfigError, match="no file, run folder or example fizbuzz") as caught:
        find_file("fizbuzz")
    assert caught.value.hint == "did you mean fizzbuzz?"


def test_text_that_the_tokenizer_does_not_know_is_scored_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {**ROW, "id": "known", "completion": "start 3 + 4 = 7 ;", "wrong_text": None}
    spaced = {**ROW, "id": "spaced", "completion": "\n3 + 4 = 7\n\n+ 1  ", "wrong_text": None}
    source = write(tmp_path / "in.jsonl", {**ROW, "id": "prose"}, known, spaced)
    config, prompts_from = config_for_file("embedded:arithmetic", "", [])
    heard: list[Event] = []
    analyse_file(source, tmp_path / "out", config, prompts_from=prompts_from, listener=heard.append)
    (warning,) = (event.text for event in heard if event.kind == "warning")
    assert warning.startswith("1 of 3 rows (33%) are mostly unknown to this tokenizer")
    rows = {row["rollout_id"]: row for row in lines(tmp_path / "out" / "signal.jsonl")}
    unknown = AutoTokenizer.from_pretrained(find_model("embedded:arithmetic")).unk_token_id
    for row in rows.values():
        assert row["unknown_tokens"] == row["token_ids"].count(unknown)
        assert len(row["tokens"]) == len(row["token_ids"])
    assert 2 * rows["prose"]["unknown_tokens"] > len(rows["prose"]["token_ids"])
    assert rows["spaced"]["unknown_tokens"] == 0
    for name, given in (("prose", ROW), ("spaced", spaced)):
        assert rows[name]["text"] == "".join(rows[name]["tokens"]) == given["completion"]
    assert rows["spaced"]["tokens"][4:6] == [" 7\n\n", "+"]  # a line ends with its last token
    wrong = [rows["prose"]["tokens"][i] for i in rows["prose"]["wrong_tokens"]]
    assert "".join(wrong).strip().startswith("=")  # labels are found in the text as it was written
    print_rollout(load_signal(tmp_path / "out", "prose"), "prose", console=Console(width=80))
    assert "unknown to this model's tokenizer: the numbers mean little" in " ".join(capsys.readouterr().out.split())


class NoUnknown:
    """The part of a tokenizer that knows the unknown token; GPT-2's end of text doubles as its unknown token."""

    unk_token_id = eos_token_id = 3
    bos_token_id = pad_token_id = None


def test_a_control_token_with_two_duties_is_not_unknown() -> None:
    assert unknown_id(cast("Any", NoUnknown())) is None
