"""Secrets and hostile text through the command line: none in a file, none on the terminal, no raw control code.

The places whose command ends before it loads a model; benchmarks/faults.py has all of them, and all spellings.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

from stepalign.errors import ConfigError
from stepalign.models.sampling.server import server_at

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_trials.canaries import CANARY, HOSTILE, HOSTILE_PLACES, PLACES, RAW
from stepalign.cli import main
from stepalign.verbs import dry_run

ENDS_EARLY = (
    "train, a key in the body", "train, a key as a key", "train, a header", "train, an address as the data",
    "train, an address as the recipe", "launch --print", "prepare", "grade", "doctor",
    "serve --print", "a word that is none", "an option that is none", "signal, an address as the model",
)  # fmt: skip
HOSTILE_EARLY = (
    "a column of that name", "a key of that name", "a value", "a recipe's name", "a missing folder",
    "a file that is no recipe", "a key of a recipe", "a command", "grade, question of a row", "grade, answer of a row",
    "grade, completion of a row",
)  # fmt: skip


def said(name: str, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    values = {"here": str(folder), "url": text, "urls": json.dumps([text]), "c": CANARY, "bad": HOSTILE}
    values |= {"escaped": json.dumps(HOSTILE)[1:-1], "run": "run", "critic": "http://127.0.0.1:9/v1"}
    words = (PLACES | HOSTILE_PLACES)[name].write(values)
    monkeypatch.setattr(sys, "argv", ["stepalign", *words])
    with contextlib.suppress(SystemExit):
        main()
    return "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ENDS_EARLY)
def test_a_secret_is_neither_said_nor_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, url in enumerate((f"http://u:a/{CANARY}@127.0.0.1:9/v1", f"http://127.0.0.1:9/v1?sig={CANARY}")):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        text = said(name, folder, url, monkeypatch, capfd)
        assert text
        assert CANARY not in text
        assert not [path for path in folder.rglob("*") if path.is_file() and CANARY in path.read_text("latin-1")]


def test_a_dry_run_says_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "describe", lambda config, **_: dry_run._changes(config))
    text = said("train --dry-run", tmp_path, f"http://u:a\\{CANARY}@127.0.0.1:9/v1", monkeypatch, capfd)
    assert "critic.base_urls" in text
    assert CANARY not in text


@pytest.mark.parametrize("name", HOSTILE_EARLY)
def test_hostile_text_reaches_no_terminal_raw(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = said(name, tmp_path, "http://h/v1", monkeypatch, capfd)
    assert text
    assert not RAW & set(text)


@pytest.mark.parametrize("url", ["http://u:a#pass@h:1/v1", "http://h:port/v1", "ftp://h:1/v1", "http://[::1:9"])
def test_an_address_of_a_rollout_server_that_is_none_is_a_users_error(url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        server_at(url)
