"""A file that is gone, or that finds no room: every command names it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepalign.critics.cache import ReplyCache
from stepalign.errors import ConfigError
from stepalign.events import silent
from stepalign.problems.loading import is_selection, load_selection
from stepalign.stopping import StopRequest
from stepalign.verbs.configs import config_for_model
from stepalign.verbs.doctor import doctor
from stepalign.verbs.export import export
from stepalign.verbs.reproduce import reproduce


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without its config.toml."""
    run = tmp_path / "run"
    for name in ("final", "checkpoints/step-00001"):
        (run / name).mkdir(parents=True)
    (run / "run.lock").touch()
    return run


@pytest.mark.parametrize("name", ["", "final", "checkpoints/step-00001"])
def test_the_weights_of_a_run_are_not_asked_without_its_recipe(run: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_for_model(str(run / name), "", None, {})
    assert caught.value.where == str(run / "config.toml")


def test_a_recipe_may_take_the_place_of_the_one_that_is_gone(run: Path) -> None:
    config, source = config_for_model(str(run), "arithmetic", None, {})
    assert (config.model.path, source) == (str(run / "final"), "arithmetic")


def test_a_model_below_a_folder_with_a_lock_alone_is_no_runs(run: Path) -> None:
    model = run.parent / "cache" / "model"
    model.mkdir(parents=True)
    (model.parent / "run.lock").touch()
    assert config_for_model(str(model), "", None, {})[0].model.path == str(model)


def test_verbs_that_read_a_run_name_what_it_lacks(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml"):
        export(run, to="jsonl", out=run.parent / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"config\.toml"):
        reproduce(run, run.parent / "again", listener=silent, stop=StopRequest())
    (run / "config.toml").touch()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl"):
        reproduce(run, run.parent / "again", listener=silent, stop=StopRequest())


def test_a_selection_without_its_manifest_is_still_one(tmp_path: Path) -> None:
    for name in ("run.lock", "config.toml", "funnel.json", "train.jsonl"):
        (tmp_path / name).touch()
    assert is_selection(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_selection(str(tmp_path), "train")
    assert caught.value.where == str(tmp_path / "manifest.json")
    (found,) = [one for one in doctor(tmp_path)[0] if one.path == tmp_path / "manifest.json"]
    assert "select --resume" in found.meaning


@pytest.mark.parametrize(("free", "why"), [(0, "the disk is full"), (2**30, "disk I/O error")])
def test_a_cache_without_room_says_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, why: str
) -> None:
    """sqlite calls it an I/O error where the file of its locks finds no room."""

    def fails(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite3, "connect", fails)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(ConfigError) as caught:
        ReplyCache(tmp_path / "cache.sqlite")
    assert str(caught.value).startswith(f"cannot use the critic cache: {why}\n")
    assert "make room" in str(caught.value)


FILLS_UP = """
import resource, sys
from pathlib import Path
from stepalign.storage.jsonl import append
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    append(path, [{"row": "x" * 150}])
except OSError as error:
    print(error.filename == str(path), path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
append(path, [{"row": 1}])
print(path.read_text())
"""


def test_a_disk_that_takes_a_part_of_the_last_record_has_not_taken_it(tmp_path: Path) -> None:
    """The system writes what there is room for and reports no error before the next write: a lost end was silent."""
    words = [sys.executable, "-c", FILLS_UP, str(tmp_path / "rows.jsonl")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == 'True 100\n{"row": 1}\n\n'
