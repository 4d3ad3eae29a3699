"""Training runs by themselves and side by side, read from real run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_html import read_html

from stepalign.config import changed, load_config
from stepalign.errors import ConfigError
from stepalign.events import Event
from stepalign.report.page import report_html
from stepalign.verbs.report import run_results, write_reports


@pytest.fixture
def trained(write_recipe: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    """Two seeds of one run, and a run at another learning rate."""
    from stepalign.events import silent
    from stepalign.stopping import StopRequest
    from stepalign.verbs.train import train_config

    config = load_config(str(write_recipe(training__max_steps=2)))
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"training.seed": 1},
        "c": {"training.learning_rate": 2e-3},
    }
    for name, keys in changes.items():
        train_config(changed(config, keys), tmp_path / name, resume=False, listener=silent, stop=StopRequest())
    return {name: tmp_path / name for name in changes}


def test_runs_side_by_side(trained: dict[str, Path], tmp_path: Path) -> None:
    results = run_results(list(trained.values()))
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert {name: [run["seed"] for run in arm["runs"]] for name, arm in arms.items()} == {"a": [0, 1], "c": [0]}
    assert arms["c"]["config_diff"] == {"training.learning_rate": 2e-3}
    for run in arms["a"]["runs"]:
        last = json.loads((Path(run["path"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert (run["steps"], run["rollouts"]) == (2, last["total_rollouts"])
        assert run["completion_tokens"] == last["total_tokens"]
    pairs = {(row["a"], row["b"], tuple(row["seeds"])) for row in results["paired"]}
    assert pairs == {("c", "a", (0,))}
    page = read_html(report_html(results)).all("main")[0].words
    assert "training.learning_rate = 0.002" in page
    assert "No arm is called the best" in page


def test_one_run_and_an_unfinished_one(trained: dict[str, Path]) -> None:
    words = read_html(report_html(run_results([trained["c"]])))
    assert "One training run" in words.all("header")[0].words
    assert "stepalign · runs" in words.all("header")[0].words
    assert "No arm is called the best" not in words.all("main")[0].words
    (trained["c"] / "sums.json").unlink()  # a run that goes on has none
    for part in ("evaluations.jsonl", "metrics.jsonl", "samples", "checkpoints"):
        path = trained["c"] / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    begun = read_html(report_html(run_results([trained["c"]]))).all("main")[0].words
    assert "Not complete: c has no test result yet" in begun


def test_other_test_problems_are_not_paired(trained: dict[str, Path]) -> None:
    (trained["c"] / "sums.json").unlink()  # else this would be damage
    file = next((trained["c"] / "samples").glob("step-*-test.jsonl"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps({**row, "problem_id": "other"}) + "\n" for row in rows), encoding="utf-8")
    results = run_results([trained["a"], trained["c"]])
    assert results["paired"] == []
    assert "No paired differences" in read_html(report_html(results)).all("main")[0].words


def damaged(folder: Path) -> dict[str, Callable[[], object]]:
    """Ways in which a disk, a killed process or a hand leaves the files of a run."""
    file = max((folder / "samples").glob("step-*-test.jsonl"))
    content, rows = file.read_bytes(), [json.loads(line) for line in file.read_bytes().splitlines()]
    other = {name: folder / f"{name}.jsonl" for name in ("metrics", "evaluations")}

    def write(*changed: Any) -> Callable[[], object]:
        return lambda: file.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")

    first, *rest = rows
    return {
        "lost": file.unlink,
        "empty": lambda: file.write_bytes(b""),
        "cut in a line": lambda: file.write_bytes(content[: len(content) // 2]),
        "a line less": write(*rest),
        "no text": lambda: file.write_bytes(b"\xff\xfe" * 40 + b"\n" + content),
        "zeros": lambda: file.write_bytes(b"\0" * 512 + b"\n"),
        "a list": write([1], *rest),
        "a key less": write({key: value for key, value in first.items() if key != "verdicts"}, *rest),
        "a value less": write({**first, "lengths": first["lengths"][1:]}, *rest),
        "another type": write({**first, "lengths": ["x" for _ in first["lengths"]]}, *rest),
        "no list": write({**first, "texts": None}, *rest),
        "an unknown verdict": write({**first, "verdicts": ["maybe" for _ in first["verdicts"]]}, *rest),
        "metrics": lambda: other["metrics"].write_bytes(b"{]\n" + other["metrics"].read_bytes()),
        "no point": lambda: other["evaluations"].write_text('{"step": 1}\n', encoding="utf-8"),
        "a folder": lambda: (file.unlink(), file.mkdir()),
        "evaluations": lambda: other["evaluations"].write_bytes(b"7\n" + other["evaluations"].read_bytes()),
    }


def test_a_damaged_file_is_named_and_no_arm_vanishes(trained: dict[str, Path], tmp_path: Path) -> None:
    for name in damaged(trained["c"]):
        hurt = tmp_path / name.replace(" ", "-") / "c"
        shutil.copytree(trained["c"], hurt)
        damaged(hurt)[name]()
        heard: list[Event] = []
        page = write_reports([trained["a"], hurt], tmp_path / name, heard.append)
        results = json.loads((page.parent / "results.json").read_text(encoding="utf-8"))
        assert [arm["name"] for arm in results["arms"]] == ["a", "c"], name
        (row,) = results["damage"]
        other = {"metrics": "metrics.jsonl", "evaluations": "evaluations.jsonl", "no point": "evaluations.jsonl"}
        file = other.get(name, "test.jsonl")
        assert row["arm"] == "c", name
        assert f"{hurt}/" in row["reason"], name
        assert file in row["reason"], name
        assert [file in event.text for event in heard] == [True], name
        words = read_html(page.read_text(encoding="utf-8")).all("main")[0].words
        assert f"c, seed 0, is damaged: {row['reason']}" in words, name
        assert {m["arm"] for m in results["metrics"]} == {"a"}, name


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run"):
        run_results([tmp_path])


def test_an_arm_that_did_not_train_is_no_result(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Verdicts alone, and every completion of a random model is wrong: the weights never move."""
    from stepalign.stopping import StopRequest
    from stepalign.verbs.report import summary_lines
    from stepalign.verbs.train import train_config

    heard: list[Event] = []
    config = load_config(str(write_recipe(condition="grpo", sampling__num_generations=2, training__max_steps=2)))
    for name, condition in (("grpo", "grpo"), ("refsol", "refsol")):
        own = changed(config, {"condition": condition})
        train_config(own, tmp_path / name, resume=False, listener=heard.append, stop=StopRequest())
    results = run_results([tmp_path / "grpo", tmp_path / "refsol"])
    found = {arm["name"]: (arm["trained"], arm["runs"][0]["steps_without_gradient"]) for arm in results["arms"]}
    assert found == {"grpo": (False, 2), "refsol": (True, 0)}
    (said,) = (
        event.text for event in heard if event.kind == "warning" and "step 1: there is no gradient" in event.text
    )
    assert "0 of 4 rollouts are right" in said
    told = summary_lines({**results, "timings": {"total": 1.0}, "peak_memory_bytes": 0})
    assert [line for line in told if "did not train" in line] == [line for line in told if "grpo" in line]
    page = read_html(report_html(results))
    assert "No result: no gradient in 2 of 2 steps" in page.all("header")[0].words
    assert "grpo did not train: no gradient in 2 of 2 steps" in page.all("main")[0].words
    rows = {row.all("th")[0].words: row for row in page.classed("results")[0].all("tbody")[0].all("tr")}
    cells = [cell.words for cell in rows["grpo (did not train)"].all("td")]
    assert [cell[0] for cell in cells[:3]] == ["–"] * 3
    assert all("no result: it did not train" in cell for cell in cells[:3])
    assert "refsol" in rows
    assert not any("grpo" in row.words for row in page.by_id("differences").all("tr"))


def test_the_completions_of_an_evaluation_are_a_page(trained: dict[str, Path], tmp_path: Path) -> None:
    file = max((trained["a"] / "samples").glob("step-*-test.jsonl"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0] |= {"texts": ["<b>bold\u202e</b>", *rows[0]["texts"][1:]], "question": "<script>1 < 2?</script>"}
    copy = tmp_path / "e.samples.jsonl"
    copy.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = write_reports([copy])
    assert page == tmp_path / "e.samples.html"
    document = read_html(page.read_text(encoding="utf-8"))
    assert not document.all("script")
    replies = [reply.words for reply in document.classed("reply")]
    assert len(replies) == sum(len(row["texts"]) for row in rows)
    assert replies[0] == "<b>bold⟨U+202E⟩</b>"
    right = sum(row["verdicts"].count("correct") for row in rows)
    assert sum(heading.words.count("of") for heading in document.all("h3")) == len(rows)
    assert sum(int(heading.words.split("· ")[1].split(" of")[0]) for heading in document.all("h3")) == right
    copy.write_text('{"problem_id": "p"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no completions") as caught:
        write_reports([copy])
    assert caught.value.where == f"{copy}:1"
