"""A run on disk: one writer, strict records, and nothing that a kill at any instant could spoil."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepalign.config import Config, changed, load_config
from stepalign.critics import RUN_FILES
from stepalign.critics.cache import ReplyCache
from stepalign.errors import ConfigError, EndpointError, LockedError
from stepalign.evaluation.evaluate import read_samples, sample_and_grade
from stepalign.records import Attempt, Completion, Grade, Problem, Rollout
from stepalign.storage.files import finite, tidy, write_atomically
from stepalign.storage.jsonl import append, keep_records, read_json_lines, to_json_line
from stepalign.storage.run_folder import RECORDS, RunFolder, as_before

CONFIG = Config()
OTHER = changed(CONFIG, {"training.seed": 1})


def lines(path: Path) -> list[dict]:
    return list(read_json_lines(path))


# ---------------------------------------------------------------------------------------------------------------------
# Opening


def test_a_new_folder_holds_its_configuration_and_versions(tmp_path: Path) -> None:
    config = changed(CONFIG, {"prompts.system": "ä \\ \n", "model.lora": {"r": 3}})
    with RunFolder(tmp_path / "a" / "b", config, resume=False) as folder:
        assert load_config(str(folder.path / "config.toml")) == config
        told = json.loads((folder.path / "versions.json").read_text(encoding="utf-8"))
        import torch

        assert told["torch"] == torch.__version__
        assert told["python"] == ".".join(map(str, sys.version_info[:3]))
        assert sorted(os.listdir(folder.path)) == ["config.toml", "run.lock", "versions.json"]


def test_a_comparison_may_get_more_seeds_and_arms_and_lose_none(tmp_path: Path) -> None:
    arms = [{"name": name, "set": {"condition": name}} for name in ("stepalign", "refsol", "grpo")]
    small = changed(CONFIG, {"compare.seeds": [0, 1], "compare.arms": arms[:2]})
    RunFolder(tmp_path, small, resume=False, kind="comparison").close()
    changes = {
        "fewer seeds": {"compare.seeds": [0]},
        "other seeds": {"compare.seeds": [0, 2, 3]},
        "fewer arms": {"compare.arms": arms[:1]},
        "another arm": {"compare.arms": [arms[0], {"name": "refsol", "set": {"condition": "grpo"}}, arms[2]]},
    }
    for change in changes.values():
        with pytest.raises(LockedError, match="holds another comparison"):
            RunFolder(tmp_path, changed(small, change), resume=True, kind="comparison").close()
    larger = changed(small, {"compare.seeds": [0, 1, 2], "compare.arms": arms})
    with pytest.raises(LockedError, match="already holds"):
        RunFolder(tmp_path, larger, resume=False, kind="comparison").close()
    RunFolder(tmp_path, larger, resume=True, kind="comparison").close()
    assert load_config(str(tmp_path / "config.toml")) == larger


def test_a_server_may_be_elsewhere_when_a_finished_run_goes_on(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", CONFIG, resume=False) as folder:
        folder.append("metrics", [{"step": 1}])
    assert (tmp_path / "run" / "sums.json").exists()
    keys = ("critic.base_urls", "sampling.base_urls", "objective.teacher.base_urls", "critic.second.base_urls")
    for port, key in enumerate((*keys, *keys), 8001):
        moved = changed(CONFIG, {key: [f"http://127.0.0.1:{port}/v1"]})
        RunFolder.check(tmp_path / "run", moved, resume=True)
        RunFolder(tmp_path / "run", moved, resume=True).close()
        assert load_config(str(tmp_path / "run" / "config.toml")) == moved


def test_resume_is_needed_and_is_harmless_on_a_new_folder(tmp_path: Path) -> None:
    for resume in (True, True):
        RunFolder(tmp_path / "run", CONFIG, resume=resume).close()
    with pytest.raises(LockedError, match="already holds this run"):
        RunFolder(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(LockedError, match=r"training\.seed is 0 there and 1 here"):
        RunFolder(tmp_path / "run", OTHER, resume=True)
    RunFolder(tmp_path / "run", CONFIG, resume=True).close()  # the refused ones have left no lock


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_folder_from_before_the_automatic_device_goes_on_with_its_own(tmp_path: Path, device: str) -> None:
    pinned = {"model.device": device, "model.dtype": "float32"}
    with RunFolder(tmp_path / "run", changed(CONFIG, pinned, "test"), resume=False):
        pass
    config = as_before(CONFIG, tmp_path / "run")
    assert (config.model.device, config.model.dtype) == (device, "float32")
    with RunFolder(tmp_path / "run", config, resume=True):
        pass
    asked = changed(CONFIG, {"model.dtype": "bfloat16"}, "test")  # what a recipe pins stays, and is refused
    assert as_before(asked, tmp_path / "run").model.dtype == "bfloat16"
    assert as_before(CONFIG, tmp_path / "elsewhere") == CONFIG


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(LockedError, match=f"process {os.getpid()} "):
        RunFolder(tmp_path / "run", CONFIG, resume=True)
    first.close()
    RunFolder(tmp_path / "run", CONFIG, resume=True).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from stepalign.config import Config;"
        "from stepalign.storage.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]), Config(), resume=True); print('open', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(LockedError, match=f"process {holder.pid} "):
        RunFolder(tmp_path, CONFIG, resume=True)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunFolder(tmp_path, CONFIG, resume=True).close()


@pytest.mark.parametrize(
    "left", [(), ("versions.json",), ("versions.json", ".config.toml.4242"), (".versions.json.77",)]
)
def test_a_start_that_was_killed_can_be_made_again(tmp_path: Path, left: tuple[str, ...]) -> None:
    """Whatever stands there between taking the lock and writing the configuration."""
    for name in ("run.lock", *left):
        (tmp_path / name).write_text("{", encoding="utf-8")
    with RunFolder(tmp_path, CONFIG, resume=False):
        assert load_config(str(tmp_path / "config.toml")) == CONFIG


@pytest.mark.parametrize("stranger", ["thesis.txt", "versions.json", "metrics.jsonl", ".hidden"])
def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).write_text("mine", encoding="utf-8")
    with pytest.raises(LockedError, match="holds other files"):
        RunFolder(tmp_path, CONFIG, resume=True)
    assert os.listdir(tmp_path) == [stranger]


def test_a_broken_configuration_in_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("condition =", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        RunFolder(tmp_path, CONFIG, resume=True)


# ---------------------------------------------------------------------------------------------------------------------
# Taking back


@pytest.mark.parametrize("error", [ConfigError("x"), EndpointError("x")])
def test_a_users_error_before_any_record_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def fail(path: Path) -> None:
        with RunFolder(path, CONFIG, resume=False, extra=RUN_FILES):
            ReplyCache(path / "critiques.sqlite").close()
            raise error

    with pytest.raises(type(error)):
        fail(tmp_path / "new" / "deep" / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()  # this one was there before
    with pytest.raises(type(error)):
        fail(tmp_path / "empty")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_what_was_recorded_or_paid_for_stays(tmp_path: Path) -> None:
    def fail(path: Path, *, resume: bool = False, record: bool = False, reply: bool = False, error=ConfigError) -> None:
        with RunFolder(path, CONFIG, resume=resume, extra=RUN_FILES) as folder:
            if record:
                folder.append("metrics", [{"step": 1}])
            if reply:
                cache = ReplyCache(path / "critiques.sqlite")
                cache.put("k", {"text": "paid for"})
                cache.close()
            raise error("x")

    with pytest.raises(ConfigError):
        fail(tmp_path / "recorded", record=True)
    assert lines(tmp_path / "recorded" / "metrics.jsonl") == [{"step": 1}]
    with pytest.raises(ConfigError):
        fail(tmp_path / "recorded", resume=True)
    assert (tmp_path / "recorded" / "config.toml").exists()
    with pytest.raises(RuntimeError):
        fail(tmp_path / "crashed", error=RuntimeError)
    assert (tmp_path / "crashed" / "config.toml").exists()
    with pytest.raises(ConfigError):
        fail(tmp_path / "paid", reply=True)
    assert [p.name for p in (tmp_path / "paid").iterdir() if not p.name.endswith(("-wal", "-shm"))] == [
        "critiques.sqlite"
    ]
    RunFolder(
        tmp_path / "paid", CONFIG, resume=False, extra=RUN_FILES
    ).close()  # and is no stranger to the next attempt


# ---------------------------------------------------------------------------------------------------------------------
# Records

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def without_nan(node: object) -> object:
    if isinstance(node, dict):
        return {k: without_nan(v) for k, v in node.items()}
    if isinstance(node, list):
        return [without_nan(v) for v in node]
    return None if isinstance(node, float) and (math.isnan(node) or math.isinf(node)) else node


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(records=st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=4), max_size=5))
def test_records_are_one_strict_line_each_and_come_back(tmp_path: Path, records: list[dict]) -> None:
    """Whatever text a model wrote: line separators of Unicode included."""
    path = tmp_path / "records.jsonl"
    path.write_text("".join(to_json_line(r) + "\n" for r in records), encoding="utf-8", newline="\n")
    assert path.read_bytes().count(b"\n") == len(records)
    assert lines(path) == [without_nan(r) for r in records]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line, parse_constant=refuse)
    assert finite(records) == [without_nan(r) for r in records]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = to_json_line({"text": "ä\u2028b"}).encode() + b"\n"
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert lines(path) == [{"text": "ä\u2028b"}]  # also where a character is torn
    assert lines(tmp_path / "missing.jsonl") == []


@pytest.mark.parametrize("torn", [b"", b'{"step": 2', b"x" * 200_000])
def test_appending_cuts_a_torn_end_first(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    append(path, [])
    assert path.read_bytes() == b'{"step": 1}\n' + torn  # nothing to append, nothing touched
    append(path, [{"step": 2}])
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_records_that_are_not_kept_move_aside(tmp_path: Path) -> None:
    path = tmp_path / "critiques.jsonl"
    assert keep_records(path, lambda row: True) == []
    path.write_bytes(b'{"n": 1, "text": "\xe2\x80\xa8"}\n{"n": 2}\n{"n": 3}\n{"n"')
    assert [row["n"] for row in keep_records(path, lambda row: row["n"] != 2)] == [1, 3]
    assert path.read_bytes() == b'{"n": 1, "text": "\xe2\x80\xa8"}\n{"n": 3}\n'
    assert (tmp_path / "superseded" / path.name).read_bytes() == b'{"n": 2}\n{"n"\n'
    keep_records(path, lambda row: True)
    assert (tmp_path / "superseded" / path.name).read_bytes().count(b"\n") == 2


def test_appending_and_rewinding(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG, resume=False) as folder:
        assert folder.sizes() == dict.fromkeys(RECORDS, 0)
        folder.append("metrics", [{"step": 1, "loss": math.nan}, {"step": 2}])
        folder.append("rollouts", [{"text": "größer"}])
        folder.append("contexts", [])
        sizes = folder.sizes()
        assert sizes["metrics"] == (tmp_path / "metrics.jsonl").stat().st_size > 0
        assert sizes["contexts"] == 0
        folder.append("metrics", [{"step": 3}])
        folder.append("critiques", [{"step": 3}])
    with RunFolder(tmp_path, CONFIG, resume=True) as folder:
        folder.rewind(sizes)
        assert folder.sizes() == sizes
        assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}, {"step": 2}]
        assert lines(tmp_path / "superseded" / "metrics.jsonl") == [{"step": 3}]
        assert lines(tmp_path / "superseded" / "critiques.jsonl") == [{"step": 3}]
        folder.append("metrics", [{"step": "3 again"}])
    assert lines(tmp_path / "metrics.jsonl")[2:] == [{"step": "3 again"}]


@pytest.mark.parametrize("kept", [None, 0, 1, -1])
def test_records_shorter_than_the_checkpoint_says_are_refused_and_nothing_is_cut(
    tmp_path: Path, kept: int | None
) -> None:
    with RunFolder(tmp_path, CONFIG, resume=False) as folder:
        folder.append("metrics", [{"step": 1}, {"step": 2}])
        folder.append("rollouts", [{"text": "one"}])
        sizes = folder.sizes()
        folder.append("rollouts", [{"text": "two"}])
    (tmp_path / "sums.json").unlink()  # as a killed process leaves it
    file = tmp_path / "metrics.jsonl"
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:kept])
    with RunFolder(tmp_path, CONFIG, resume=True) as folder, pytest.raises(ConfigError) as caught:
        folder.rewind(sizes)
    assert f"the checkpoint was written after {sizes['metrics']}" in caught.value.what
    assert caught.value.where == str(file)
    assert len(lines(tmp_path / "rollouts.jsonl")) == 2


def test_a_full_disk_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        append(tmp_path / "metrics.jsonl", [{"step": 1}])
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_rewinding_cuts_a_torn_record_and_keeps_every_byte(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG, resume=False) as folder:
        folder.append("metrics", [{"step": 1}])
        sizes = folder.sizes()
    (tmp_path / "sums.json").unlink()  # as a killed process leaves it
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2}\n{"ste')
    with RunFolder(tmp_path, CONFIG, resume=True) as folder:
        folder.rewind(sizes)
        folder.rewind(sizes)  # twice is once
        folder.append("metrics", [{"step": 2}])
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]
    assert (tmp_path / "superseded" / "metrics.jsonl").read_bytes() == b'{"step": 2}\n{"ste\n'


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A child writes versions of a file as fast as it can; a reader sees only whole ones, also after the kill."""
    path = tmp_path / "numbers.json"
    write_atomically(path, json.dumps([0] * 2000))
    child = os.fork()
    if child == 0:
        number = 0
        while True:
            number += 1
            write_atomically(path, json.dumps([number] * 2000))
    seen = set()
    try:
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            found = json.loads(path.read_text(encoding="utf-8"))
            assert len(found) == 2000
            assert len(set(found)) == 1
            seen.add(found[0])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(seen) > 1
    assert len(set(json.loads(path.read_text(encoding="utf-8")))) == 1
    write_atomically(path, "[]")
    assert path.read_text(encoding="utf-8") == "[]"


def wrong_rollout(problem: Problem, text: str) -> Rollout:
    completion = Completion(ids=(1,), log_probs=(0.0,), finish_reason="stop", policy_version=0)
    attempt = Attempt(rollout_id="r", problem=problem, text=text, grade=Grade(score=0.0))
    return Rollout(attempt=attempt, completion=completion, step=0, group_index=0)


def test_completions_with_any_line_separator_are_read_again(tmp_path: Path) -> None:
    """The completions of an evaluation are taken over on resume, whatever characters the model wrote."""
    texts = ["a\u2028b", "a\u0085b", "a\u2029\nb\rc", "\x0b\x0c\x1c\x1d\x1e", "plain"]
    problems = [Problem(problem_id=str(i), question="q", answer="1") for i in range(len(texts))]
    calls: list[int] = []

    def attempt(chunk, num_samples, seed, on_graded):
        calls.append(len(chunk))
        return [[wrong_rollout(problem, texts[int(problem.problem_id)])] * num_samples for problem in chunk]

    file = tmp_path / "samples.jsonl"
    first = sample_and_grade(problems, num_samples=2, seed=0, attempt=attempt, canonical=str, file=file)
    with file.open("ab") as torn:
        torn.write('{"problem_id": "5", "texts": ["ä'.encode()[:-1])  # a character cut in two
    again = sample_and_grade(problems, num_samples=2, seed=0, attempt=attempt, canonical=str, file=file)
    assert again == first == read_samples(file)
    assert [p.texts[0] for p in again] == texts
    assert calls == [5]


@pytest.mark.parametrize("whole", [0, 1, 255, 256, 257, 299])
def test_an_evaluation_that_was_killed_while_writing_goes_on_with_whole_chunks(tmp_path: Path, whole: int) -> None:
    problems = [Problem(problem_id=str(i), question="q", answer="1") for i in range(300)]
    seeds: list[int] = []

    def attempt(chunk, num_samples, seed, on_graded):
        seeds.append(seed)
        return [[wrong_rollout(problem, f"text {problem.problem_id}")] * num_samples for problem in chunk]

    file = tmp_path / "samples.jsonl"
    options = {"num_samples": 1, "seed": 7, "attempt": attempt, "canonical": str, "file": file}
    first = sample_and_grade(problems, **options)
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(rows[:whole]) + rows[whole][:-5])
    seeds.clear()
    assert sample_and_grade(problems, **options) == first
    assert read_samples(file) == first
    assert seeds == ([263] if whole >= 256 else [7, 263])  # chunks are drawn as a whole, from their own seeds


def test_half_written_files_of_dead_processes_go_and_those_of_this_one_stay(tmp_path: Path) -> None:
    dead, own, other = (
        tmp_path / ".versions.json.1",
        tmp_path / f".summary.json.{os.getpid()}",
        tmp_path / ".gitignore.x",
    )
    for file in (dead, own, other):
        file.write_text("{", encoding="utf-8")
    tidy(tmp_path)
    assert [dead.exists(), own.exists(), other.exists()] == [False, True, True]
