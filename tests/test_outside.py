"""Text from outside, at every border it crosses."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stepalign.config import load_config, to_toml
from stepalign.critics.cache import ReplyCache
from stepalign.critics.chat import ChatReply, read_reply
from stepalign.outside import difference_shown, encodable, parse_json
from stepalign.problems.loading import load_problems
from stepalign.problems.rows import read_rows
from stepalign.storage.files import read_json, write_json
from stepalign.storage.jsonl import JsonLines, keep_records, read_json_lines
from stepalign.verbs.attempts import read_attempts
from stepalign.verbs.signal.from_jsonl import check_file

LONE = "a \ud83d b"
WHOLE = "a \ufffd b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "é 😀",
        LONE,
        "\ude00\ud83d",
        chr(0xD83D) + chr(0xDE00),
        "\ud83d\ud83d\ude00\ude00",
        "\udcff",
        "\ud800" * 3,
    ],
)
def test_encodable_text_is_what_utf_16_reads_in_it(text: str) -> None:
    made = encodable({text: [text, (text, 1, None)]})
    whole = b"".join(ord(c).to_bytes(2, "little") if ord(c) < 0x10000 else c.encode("utf-16-le") for c in text)
    expected = whole.decode("utf-16-le", "replace")
    assert made == {expected: [expected, [expected, 1, None]]}
    json.dumps(made, ensure_ascii=False).encode()
    assert parse_json(json.dumps({text: text})) == {expected: expected}


def _border_of_problems(folder: Path, row: dict[str, Any]) -> str:
    (folder / "p.jsonl").write_text(json.dumps(row) + "\n")
    return load_problems(folder / "p.jsonl").problems[0].question


def _border_of_json_problems(folder: Path, row: dict[str, Any]) -> str:
    (folder / "p.json").write_text(json.dumps([row]))
    return load_problems(folder / "p.json").problems[0].question


def _border_of_chats(folder: Path, row: dict[str, Any]) -> str:
    chat = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": r"\boxed{4}"}]
    (folder / "p.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    return load_problems(folder / "p.jsonl", "messages").problems[0].question


def _border_of_attempts(folder: Path, row: dict[str, Any]) -> str:
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    return read_attempts(folder / "a.jsonl").attempts[0].problem.question


def _border_of_graded_files(folder: Path, row: dict[str, Any]) -> str:
    (folder / "g.jsonl").write_text(json.dumps(row) + "\n")
    ((_, read),) = read_rows(str(folder / "g.jsonl"))
    assert isinstance(read, dict)
    return read["question"]


def _border_of_signal_files(folder: Path, row: dict[str, Any]) -> str:
    (folder / "s.jsonl").write_text(json.dumps({**row, "contexts": {row["question"]: "hint"}}) + "\n")
    return check_file(folder / "s.jsonl", (), None).contexts[0]


def _border_of_records(folder: Path, row: dict[str, Any]) -> str:
    (folder / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = read_json_lines(folder / "rollouts.jsonl")
    assert keep_records(folder / "rollouts.jsonl", lambda line: True) == [read]
    return read["question"]


def _border_of_written_records(folder: Path, row: dict[str, Any]) -> str:
    with closing(JsonLines(folder / "rollouts.jsonl")) as file:
        file.append([row])
    write_json(folder / "o.json", row)
    (read,) = read_json_lines(folder / "rollouts.jsonl")
    assert read == read_json(folder / "o.json")
    return read["question"]


def _border_of_replies(folder: Path, row: dict[str, Any]) -> str:
    message = {"role": "assistant", "content": row["question"]}
    reply = read_reply(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))
    assert isinstance(reply, ChatReply)
    return reply.content or ""


def _border_of_old_replies(folder: Path, row: dict[str, Any]) -> str:
    with closing(ReplyCache(folder / "c.sqlite")) as cache:
        value = json.dumps({"content": row["question"]})
        with closing(sqlite3.connect(folder / "c.sqlite")) as other:
            other.execute("INSERT INTO replies VALUES ('k', ?, 0)", (value,))
            other.commit()
        return (cache.get("k") or {})["content"]


def _border_of_settings(folder: Path, row: dict[str, Any]) -> str:
    words = load_config(None, [f"prompts.system={row['question']}"])
    assert words == load_config(None, {"prompts.system": row["question"]})
    to_toml(words).encode()
    return words.prompts.system


BORDERS = [border for name, border in list(globals().items()) if name.startswith("_border_of")]


@pytest.mark.parametrize("border", BORDERS)
def test_a_lone_surrogate_becomes_encodable_at(border: Callable[[Path, dict[str, Any]], str], tmp_path: Path) -> None:
    row = {"question": LONE, "answer": "4", "completion": LONE, "metadata": {LONE: LONE}}
    assert border(tmp_path, row) == WHOLE


def test_two_long_values_are_shown_where_they_differ() -> None:
    before = "a" * 500 + "old" + "b" * 500
    shown = difference_shown(before, before.replace("old", "new"))
    assert len(shown) < 160
    assert "aaoldbb" in shown.partition(" there and ")[0]
    assert "aanewbb" in shown.partition(" there and ")[2]
    assert difference_shown(3, "x") == "3 there and 'x' here"
    assert difference_shown("a" * 200, "a" * 300) != difference_shown("a" * 300, "a" * 200)
