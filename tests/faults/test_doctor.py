"""Damage of every kind is named by ``stepalign doctor``, and mended where nothing is lost by it. Loads no torch."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from stepalign import cli
from stepalign.cli.options import working
from stepalign.config import Config, changed
from stepalign.critics.cache import ReplyCache
from stepalign.errors import ConfigError, LockedError
from stepalign.evaluation.comparison import Evaluations
from stepalign.storage.files import whole_folder, write_json
from stepalign.storage.fingerprint import sha256_of_file
from stepalign.storage.run_folder import RunFolder
from stepalign.storage.sums import check_sums, short_of_checkpoint, sum_of_tree
from stepalign.verbs.doctor import doctor, finding_lines

CONFIG = changed(Config(), {"model.path": "embedded:arithmetic"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, as its files show it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    with RunFolder(path, CONFIG, resume=False) as folder:
        for step in (1, 2):
            rows = [{"record_step": step, "rollout_id": f"s{step}-{i}", "text": "é" * 20} for i in range(3)]
            for name in ("rollouts", "contexts"):
                folder.append(name, rows)
            folder.append("metrics", [{"step": step, "loss": 0.5}])
            state = {"sizes": folder.sizes(), "sums": folder.sums(), "progress": {"step": step}}
            with whole_folder(path / "checkpoints" / f"step-{step:05d}") as filled:
                for name in ("model.safetensors", "optimizer.safetensors", "teacher.safetensors"):
                    (filled / name).write_bytes(b"weights of step %d" % step)
                (filled / "state.json").write_text(json.dumps(state))
        with whole_folder(path / "final") as filled:
            (filled / "model.safetensors").write_bytes(b"weights of step 2")
        with closing(ReplyCache(path / "critiques.sqlite")) as cache:
            cache.put("a", {"content": "one"})
            cache.put("b", {"content": "two"})
        (path / "samples").mkdir()
        (path / "samples" / "step-00002-test.jsonl").write_text('{"problem_id": "p"}\n')
        (path / "summary.json").write_text('{"steps": 2}')
        (path / "report.html").write_text("<html></html>")
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[Callable[[Path], None]] = [cut, flip, empty, Path.unlink]
FILES = ["config.toml", "versions.json", "rollouts.jsonl", "contexts.jsonl", "metrics.jsonl", "summary.json"]
FILES += ["report.html", "samples/step-00002-test.jsonl", "final/model.safetensors", "final/manifest.json"]
FILES += ["sums.json"]
FILES += [f"checkpoints/step-00002/{name}" for name in ("model.safetensors", "state.json", "manifest.json")]


def test_a_whole_folder_is_well(run: Path) -> None:
    assert doctor(run) == ([], [])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_others_are_not(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / name)
    found, _ = doctor(run)
    named = {str(one.path.relative_to(run)) for one in found}
    guards = Path(name).name == "manifest.json"  # one that is wrong about a file names that file
    assert named == {name} or (guards and {Path(other).parent for other in named} == {Path(name).parent}), named
    assert all(one.what and one.meaning for one in found)
    assert finding_lines(run, doctor(run)[0]) == finding_lines(run, found)  # looking changes nothing


def test_lost_checksums_of_finished_work_are_written_anew(run: Path) -> None:
    (run / "sums.json").unlink()
    assert [one.path.name for one in doctor(run)[0]] == ["sums.json"]
    assert len(doctor(run, repair=True)[1]) == 1
    flip(run / "summary.json")
    assert [one.path.name for one in doctor(run)[0]] == ["summary.json"]


def test_the_next_command_refuses_damaged_files_and_names_them(run: Path) -> None:
    flip(run / "samples" / "step-00002-test.jsonl")
    with pytest.raises(ConfigError, match=r"samples/step-00002-test\.jsonl has other content") as error:
        RunFolder(run, CONFIG, resume=True)
    assert "stepalign doctor" in str(error.value.hint)
    (run / "sums.json").unlink()
    RunFolder(run, CONFIG, resume=True).close()


def test_records_of_a_killed_run_are_held_against_its_checkpoint(run: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-00002" / "state.json").read_text())
    (run / "sums.json").unlink()
    with RunFolder(run, CONFIG, resume=True) as folder:
        folder.rewind(state["sizes"], state["sums"])  # as it was: nothing is cut
        flip(run / "contexts.jsonl")
        with pytest.raises(ConfigError, match="records of contexts are not those"):
            folder.rewind(state["sizes"], state["sums"])
    (run / "sums.json").unlink()
    assert [one.path.name for one in doctor(run)[0]] == ["contexts.jsonl", "sums.json"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_samples_of_a_killed_run_are_held_against_its_checkpoint(run: Path, damage: Callable[[Path], None]) -> None:
    """Those of a finished evaluation; one that goes on behind the checkpoint has none to be held against."""
    for name in ("sums.json", "summary.json"):
        (run / name).unlink()
    with RunFolder(run, CONFIG, resume=True) as folder:
        names = ["samples/step-00002-test"]
        state = {"sizes": folder.sizes(names), "sums": folder.sums(names)}
        with whole_folder(run / "checkpoints" / "step-00003") as filled:
            for part in ("model.safetensors", "optimizer.safetensors", "teacher.safetensors"):
                (filled / part).write_bytes(b"weights")
            (filled / "state.json").write_text(json.dumps(state))
        file = run / "samples" / "step-00002-test.jsonl"
        (run / "samples" / "step-00004-test.jsonl").write_text('{"problem_id": "p"}\n')
        folder.rewind(state["sizes"], state["sums"])
        damage(file)
        with pytest.raises(ConfigError, match="records of samples/step-00002-test"):
            folder.rewind(state["sizes"], state["sums"])
    (run / "sums.json").unlink()
    assert [one.path for one in doctor(run)[0]] == [file]
    with pytest.raises(ConfigError, match=file.name):
        check_sums(run, "rollouts.jsonl", "samples")
    check_sums(run, "rollouts.jsonl")


@pytest.mark.parametrize("name", ["evaluations", "metrics", "rollouts"])
@pytest.mark.parametrize("damage", ["removed", "cut", "flipped"])
def test_records_that_a_killed_run_has_lost_are_named_by_those_who_read_them(run: Path, name: str, damage: str) -> None:
    (run / "sums.json").unlink()
    (run / "samples" / "step-00002-test.jsonl").unlink()
    (run / "summary.json").unlink()  # the run has not ended
    with RunFolder(run, CONFIG, resume=True) as folder:
        folder.append("evaluations", [{"step": 2, "set": "test", "rollouts": 6, "seconds": 1, "metrics": []}])
        state = {"sizes": folder.sizes(), "sums": folder.sums(), "progress": {"step": 3}}
        for step, whole in ((3, True), (4, True), (5, False)):  # the newest is damaged, the one before it a wreck
            more = {"sizes": {one: size + 100 * (step > 3) for one, size in state["sizes"].items()}}
            with whole_folder(run / "checkpoints" / f"step-{step:05d}") as filled:
                for part in ("model.safetensors", "optimizer.safetensors", "teacher.safetensors"):
                    (filled / part).write_bytes(b"weights")
                (filled / "state.json").write_text(json.dumps(state | more))
            if not whole:
                flip(run / "checkpoints" / "step-00005" / "model.safetensors")
        (run / "checkpoints" / "step-00004" / "wreck").write_text("a break")
    (run / "sums.json").unlink()
    file = run / f"{name}.jsonl"
    assert short_of_checkpoint(run) == Evaluations(run, (1,)).damage == []
    if damage == "removed":
        file.unlink()
    elif damage == "flipped":
        flip(file)
    else:
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:-1]))
    assert [name for name, _ in short_of_checkpoint(run)] == [file.name]
    if name == "rollouts":
        with pytest.raises(ConfigError, match=file.name):
            check_sums(run, "config.toml", file.name)
    else:
        assert any(str(file) in found for found in Evaluations(run, (1,)).damage)
    assert file in [one.path for one in doctor(run)[0]]


def test_repair_mends_what_is_safe_and_keeps_what_was_paid_for(run: Path) -> None:
    (run / "sums.json").unlink()
    torn = b'{"record_step": 3, "rollout_id": "s3-0", "te'
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(torn)
    flip(run / "final" / "model.safetensors")
    empty(run / "checkpoints" / "step-00001" / "optimizer.safetensors")
    for name in (".final.tmp", ".step-00003.gone"):
        (run / "checkpoints" / name).mkdir()
    (run / ".summary.json.99999999").write_text("half")
    found, mended = doctor(run, repair=True)
    assert found == []
    assert len(mended) == 7
    assert doctor(run) == ([], [])
    assert (run / "superseded" / "rollouts.jsonl").read_bytes() == torn + b"\n"
    assert (run / "final" / "model.safetensors").read_bytes() == b"weights of step 2"
    assert (run / "superseded" / "final" / "model.safetensors").exists()
    assert (run / "checkpoints" / "superseded" / "step-00001").is_dir()
    assert [p.name for p in run.rglob(".*")] == []


def test_a_checkpoint_is_not_mended_with_weights_of_another_step(run: Path) -> None:
    flip(run / "final" / "model.safetensors")
    flip(run / "checkpoints" / "step-00002" / "model.safetensors")
    found, mended = doctor(run, repair=True)
    assert [one.path.parent.name for one in found] == ["final"]
    assert found[0].mend is None
    assert len(mended) == 1
    assert (run / "checkpoints" / "superseded" / "step-00002").is_dir()


def test_replies_are_checked_one_by_one(run: Path) -> None:
    with closing(sqlite3.connect(run / "critiques.sqlite")) as cache:
        cache.execute("UPDATE replies SET value = replace(value, 'one', 'One')")
        cache.commit()
    (found,), _ = doctor(run)
    assert found.what == "has 1 damaged replies"
    assert [one.what for one in doctor(run / "critiques.sqlite")[0]] == [found.what]
    (run / "critiques.sqlite").write_bytes(b"no database" * 100)
    _, mended = doctor(run, repair=True)
    assert len(mended) == 1
    assert (run / "superseded" / "critiques.sqlite").read_bytes() == b"no database" * 100


def test_folders_of_others_and_folders_in_use_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="no command has written"):
        doctor(tmp_path / "mine")
    with RunFolder(run, CONFIG, resume=True), pytest.raises(LockedError, match="another process writes"):
        doctor(run)


def test_the_manifest_of_a_selection_is_none_of_weights(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "selection", CONFIG, resume=False, kind="selection") as folder:
        (folder.path / "train.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
        checksum = hashlib.sha256((folder.path / "train.jsonl").read_bytes()).hexdigest()
        files = {"train": {"file": "train.jsonl", "problems": 1, "sha256": checksum}}
        (folder.path / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    assert doctor(folder.path) == ([], [])
    flip(folder.path / "train.jsonl")
    (found,), _ = doctor(folder.path)
    assert found.path.name == "train.jsonl"
    assert "select --resume" in found.meaning


@pytest.mark.parametrize(("resume", "end"), [("", "train.jsonl"), (" --resume", "train.jsonl --resume")])
def test_a_full_disk_is_met_with_the_command_that_goes_on(
    resume: str, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: object) -> None:
        with working(resume=resume):
            raise OSError(errno.ENOSPC, "No space left on device", "/data/train.jsonl")

    monkeypatch.setattr(cli, "__getattr__", lambda name: app)
    monkeypatch.setattr(sys, "argv", ["stepalign", "evaluate", "--out", "/data/train.jsonl"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.splitlines() == [
        "error: No space left on device",
        "  where: /data/train.jsonl",
        f"  hint: make room; continue with: stepalign evaluate --out /data/{end}",
    ]


def test_a_repair_on_a_full_disk_leaves_what_was_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    flip(run / "final" / "model.safetensors")

    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "sqlite" not in p.name}

    before = content()
    with monkeypatch.context() as full:
        full.setattr("stepalign.storage.files.shutil.copyfile", fill)
        with pytest.raises(OSError, match="No space left"):
            doctor(run, repair=True)
    assert content() == before
    assert doctor(run, repair=True)[0] == []
    assert (run / "final" / "model.safetensors").read_bytes() == b"weights of step 2"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["e.json", "e.samples.json", "e.samples.jsonl"])
def test_every_file_of_an_evaluation_is_named_when_it_is_damaged(tmp_path: Path, name: str, damage) -> None:
    samples, settings = tmp_path / "e.samples.jsonl", tmp_path / "e.samples.json"
    samples.write_text('{"problem_id": "p", "texts": ["é"]}\n')
    settings.write_text('{"grader": ["exact"]}\n')
    result = {"samples": str(samples), "metrics": [{"metric": "pass@1", "value": 0.5, "low": float("nan")}]}
    result |= {"samples_sha256": sha256_of_file(samples), "settings_sha256": sha256_of_file(settings)}
    write_json(tmp_path / "e.json", {**result, "sha256": sum_of_tree(result)})
    assert doctor(tmp_path) == ([], [])
    damage(tmp_path / name)
    assert [one.path.name for one in doctor(tmp_path)[0]] == [name]
