"""A changed number is found by ``verify``, wherever it is; ``reproduce`` names the first bit that differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepalign.config import changed, load_config
from stepalign.errors import ConfigError, LockedError
from stepalign.events import silent
from stepalign.feedback.prompts import load_template
from stepalign.models.prompts import PromptBuilder
from stepalign.stopping import StopRequest
from stepalign.storage.files import write_json
from stepalign.storage.run_folder import RunFolder, versions
from stepalign.storage.sums import write_sums
from stepalign.verbs.configs import config_for_model
from stepalign.verbs.export import export
from stepalign.verbs.report import run_results
from stepalign.verbs.reproduce import differences, reproduce
from stepalign.verbs.signal.from_run import analyse_run
from stepalign.verbs.train import train_config
from stepalign.verbs.verify import _hold_against_checksums, verify
from stepalign.verbs.verify.verified import Verified

SETTINGS = {
    "training.max_steps": 2,
    "training.problems_per_step": 2,
    "training.save_steps": 1,
    "evaluation.num_samples": 2,
    "evaluation.eval_steps": 2,
    "evaluation.bootstrap_samples": 100,
    "objective.teacher.weights": "ema",
    "data.max_validation": 2,
    "data.max_test": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "run"
    train_config(load_config("arithmetic", SETTINGS), out, resume=False, listener=silent, stop=StopRequest())
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(file: Path, line: int, edit: Callable[[dict[str, Any]], None]) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[line])
    edit(row)
    lines[line] = json.dumps(row)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_every_number_of_a_run_is_recomputed(run: Path) -> None:
    found = verify(run)
    assert found.different == []
    assert found.checked["rollouts scored again"] == 4
    assert found.checked["mean A_t"] == 2  # under the first weights, and under those of step 1 with its own teacher
    for kind in ("checksums", "texts", "grades", "metrics", "contexts", "evaluated numbers", "A_t", "totals"):
        assert found.checked[kind], kind


def test_changed_numbers_are_found_each_at_its_place(run: Path) -> None:
    def raise_log_prob(row: dict[str, Any]) -> None:
        row["completion"]["log_probs"][3] += 0.01

    change(run / "rollouts.jsonl", 0, lambda row: row.update(reward=1.0 - row["reward"]))
    change(run / "rollouts.jsonl", 1, lambda row: row.update(text=row["text"] + " "))
    change(run / "rollouts.jsonl", 3, raise_log_prob)
    change(run / "metrics.jsonl", 0, lambda row: row.update(log_ratio=row["log_ratio"] + 0.01))
    change(run / "metrics.jsonl", 1, lambda row: row.update(total_tokens=row["total_tokens"] + 1))
    change(run / "contexts.jsonl", 2, lambda row: row.update(text="other"))
    change(run / "samples" / "step-00002-test.jsonl", 0, lambda row: row["verdicts"].reverse() or row["lengths"].sort())
    change(run / "evaluations.jsonl", 0, lambda row: row["metrics"][0].update(value=0.123))
    found = "\n".join(verify(run).different)
    places = [
        "s00000-p0000-g00, reward",
        "s00000-p0001-g00, text",
        "step 1, log_ratio (mean A_t",
        "step 2, total_tokens",
    ]
    places += ["contexts.jsonl, step 2", "log-probabilities under the weights of step 1", "evaluations.jsonl, step 0"]
    places += ["summary.json, completion_tokens", "metrics.jsonl has "]
    assert [place for place in places if place not in found] == []


def test_a_run_is_reproduced_to_the_bit_from_its_own_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert reproduce(run, out, listener=silent, stop=StopRequest()) == []
    change(out / "rollouts.jsonl", 2, lambda row: row["completion"]["ids"].reverse())
    change(out / "metrics.jsonl", 0, lambda row: row.update(loss=5.0, seconds=9.9))
    first, second = sorted(differences(run, out), key=lambda one: one.step)
    assert (first.file, first.step, first.key, first.now) == ("metrics.jsonl", 1, "loss", 5.0)
    assert (second.file, second.step) == ("rollouts.jsonl", 2)
    assert second.key.startswith("s00001-p0000-g00: completion.ids[")


def test_another_seed_differs_from_its_first_step_on(run: Path, tmp_path: Path) -> None:
    config = changed(load_config(str(run / "config.toml")), {"training.seed": 1, "training.max_steps": 1})
    train_config(config, tmp_path / "other", resume=False, listener=silent, stop=StopRequest())
    found = list(differences(run, tmp_path / "other"))
    assert {one.file for one in found} >= {"rollouts.jsonl", "metrics.jsonl", "final/model.safetensors"}
    assert min(one.step for one in found) <= 1


def test_what_reads_a_finished_run_refuses_a_damaged_file_or_names_it(run: Path, tmp_path: Path) -> None:
    readers: dict[str, Callable[[], Any]] = {
        "rollouts.jsonl": lambda: analyse_run(run, tmp_path / "signal"),
        "critiques.jsonl": lambda: analyse_run(run, tmp_path / "signal"),
        "contexts.jsonl": lambda: export(run, "jsonl", tmp_path / "rows.jsonl"),
        "config.toml": lambda: config_for_model(str(run), "", None, {}),
    }
    for name, read in readers.items():
        before = (run / name).read_bytes()
        (run / name).write_bytes(before.replace(b"0", b"1", 1))
        with pytest.raises(ConfigError, match=f"the file {name} has other content"):
            read()
        (run / name).write_bytes(before)
    assert run_results([run])["damage"] == []
    for name in ("summary.json", "metrics.jsonl", "samples/step-00002-test.jsonl"):
        before = (run / name).read_bytes()
        (run / name).write_bytes(before.replace(b"0", b"1", 1))
        results = run_results([run])
        assert f"{run / name} has other content" in results["damage"][0]["reason"]
        assert results["metrics"] == []
        (run / name).write_bytes(before)


def test_what_is_missing_or_short_is_a_finding(run: Path, tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        found = Verified()
        _hold_against_checksums(folder, found)
        return " ".join(found.different)

    (run / "checkpoints" / "step-00001" / "manifest.json").unlink()
    assert said(run) == "checkpoints/step-00001/manifest.json is missing"
    (run / "sums.json").unlink()
    (run / "summary.json").unlink()  # the run was killed
    metrics = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(metrics[0])
    assert "metrics.jsonl has" in said(run)
    (run / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="the recipe is empty"):
        export(run, "jsonl", tmp_path / "rows.jsonl")
    (run / "config.toml").unlink()
    with pytest.raises(LockedError, match=r"config\.toml is missing beside the records of a run"):
        RunFolder.check(run, load_config("arithmetic"), resume=True, kind="run", extra=())


def test_an_evaluation_without_its_completions_or_settings_is_a_finding(tmp_path: Path) -> None:
    samples = tmp_path / "e.samples.jsonl"
    write_json(tmp_path / "e.json", {"metrics": [], "samples": str(samples), "num_problems": 1})
    assert verify(tmp_path / "e.json").different == ["e.samples.jsonl is missing"]
    samples.write_text("{}\n")
    assert verify(tmp_path / "e.json").different == ["e.samples.json is missing"]


@pytest.mark.parametrize("name", ["chat_template", "sanitize_control_tokens", "tokenize"])
def test_a_chat_option_does_not_change_what_is_done_with_the_template(name: str, byte_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is no option of a chat template"):
        PromptBuilder(
            byte_tokenizer,
            student=load_template("{{ question }}"),
            self_teacher=load_template("{{ question }} {{ feedback }}"),
            student_chat_options={name: False},
        )


def test_the_lock_names_every_package_and_the_machine(run: Path) -> None:
    kept = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    import numpy
    import pydantic

    assert kept["packages"]["numpy"] == numpy.__version__
    assert kept["packages"]["pydantic"] == pydantic.__version__
    assert kept["machine"]["cores"] == versions()["machine"]["cores"]


def test_a_changed_file_is_named_once_where_a_folder_has_a_manifest_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": {"train": {"sha256": "0"}}}', encoding="utf-8")
    (tmp_path / "train.jsonl").write_text("{}\n", encoding="utf-8")
    write_sums(tmp_path)
    (tmp_path / "train.jsonl").write_text("[]\n", encoding="utf-8")
    found = Verified()
    _hold_against_checksums(tmp_path, found)
    assert found.checked["checksums"] == 2
    assert [one for one in found.different if "train.jsonl" in one] == found.different
    assert len(found.different) == 1
