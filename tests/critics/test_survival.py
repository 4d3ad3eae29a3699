"""Secrets that are written nowhere, terminals that are not obeyed, replies that are paid for once or counted."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fault_server import FaultServer
from pytest_httpserver import HTTPServer

from stepalign.config import Config, CriticSection, changed, to_toml
from stepalign.critics.cache import ReplyCache
from stepalign.critics.endpoint import EndpointCritic
from stepalign.critics.served import served_model
from stepalign.critics.servers import RetryPolicy
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError, EndpointError, UserError
from stepalign.events import line, warning
from stepalign.outside import redact_url, redacted, shown, split_url
from stepalign.records import Attempt, Critique, Problem
from stepalign.storage.jsonl import JsonLines
from stepalign.waiting import wait_for

CANARY = "cAnArY0815xyz"
Serve = Callable[..., FaultServer]
QUICK = RetryPolicy(base_seconds=0.001, max_attempts=2)
# Each as a person may write it; HOST stands for the server's address. What must not come back is CANARY.
PASSWORDS = [
    CANARY,
    f"a@{CANARY}",
    f"{CANARY}@b",
    f"a b{CANARY}",
    f"{CANARY} c",
    CANARY * 60,
    f"a/{CANARY}",
    f"a?{CANARY}",
]
PASSWORDS += [
    f"a#{CANARY}",
    f"a:{CANARY}",
    f"a%40{CANARY}",
    f"{CANARY}%20d",
    f"é{CANARY}",
    f"[{CANARY}]",
    f"a'{CANARY}",
]
PASSWORDS += [
    f'a"{CANARY}',
    f"a\\{CANARY}",
    f"a,{CANARY}",
    f"a&{CANARY}=",
    f"${CANARY}",
    f"@@{CANARY}",
    f"a=@{CANARY}/b",
]
PASSWORDS += [f"a;{CANARY}", f"{CANARY}\t", f"<{CANARY}>", f"a%2F{CANARY}%3F"]
URLS = [f"http://user:{password}@HOST/v1" for password in PASSWORDS]
URLS += [
    f"http://{CANARY}@HOST/v1",
    f"http://:{CANARY}@HOST/v1",
    f"HTTP://u:{CANARY}@HOST/v1",
    f" http://u:{CANARY}@HOST/v1 ",
]
URLS += [
    f"http://HOST/v1?{name}={CANARY}" for name in ("api_key", "key", "token", "sig", "code", "x", "subscription-key")
]
URLS += [f"http://HOST/v1?a=1&key={CANARY}&b=2", f"http://HOST/v1?api-version=3&k={quote('a b' + CANARY)}"]
URLS += [f"http://HOST/v1?{CANARY}", f"http://HOST/v1#{CANARY}", f"http://u:{CANARY}@HOST/v1?key={CANARY}1"]


def attempt(number: int) -> Attempt:
    problem = Problem(problem_id=f"p{number}", question=f"q{number}", answer="1")
    return Attempt(rollout_id=f"r{number}", problem=problem, text="<step_1> x", grade=Grade(score=0.0))


def critic_at(url: str, **options: Any) -> EndpointCritic:
    keys = {name: options.pop(name) for name in CriticSection.model_fields.keys() & options.keys()}
    section = CriticSection(**({"base_urls": (url,), "model": "critic", "sees": "nothing"} | keys))
    return EndpointCritic(section, prompt="{{ question }}", **options)


def ask(critic: EndpointCritic, number: int = 0) -> Critique:
    return wait_for(critic.critique(attempt(number)))


# --- secrets ---


def test_forty_canaries() -> None:
    assert len(URLS) >= 40
    assert all(CANARY in url for url in URLS)


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_an_address_reaches_the_server_and_nothing_else(
    serve: Serve, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def echoes(text: str, asked: int) -> str:
        return {"q1": "echo_key", "q2": "refuse_key", "q3": "close"}.get(text, "ok")

    server = serve(echoes)
    url = url.replace("HOST", f"127.0.0.1:{server.server_port}")
    lines: list[str] = []
    config = changed(Config(), {"critic.base_urls": [url], "critic.kind": "endpoint", "critic.model": "critic"})
    assert CANARY not in to_toml(config)
    files = {"cache_path": tmp_path / "c.sqlite", "ledger_path": tmp_path / "l.jsonl"}
    with critic_at(url, announce=lines.append, policy=QUICK, **files) as critic:
        critic.check()
        critiques = [ask(critic, number) for number in range(4)]
        kept = [repr(critic), repr(critiques), *lines, *capsys.readouterr()]
    assert [critique.status for critique in critiques[:1]] == ["ok"]
    kept += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    address = split_url(url)
    if address.user:
        sent = address.authorization.removeprefix("Basic ")
        assert all(headers["authorization"] == f"Basic {sent}" for headers in server.headers)
        kept = [text.replace(CANARY, "!") for text in kept if sent in text] or kept
    for text in [*kept, redact_url(url), redacted(f"see {url}"), shown(json.dumps({"url": url}))]:
        assert CANARY not in text
    for error in (UserError(f"no {url}", where=url, hint=repr([url])), line(f"at {url}"), warning(json.dumps([url]))):
        assert CANARY not in str(error) + repr(error)


def test_user_and_password_are_sent_as_a_server_expects_them(serve: Serve) -> None:
    server = serve()
    with critic_at(f"http://me:p%40s s@127.0.0.1:{server.server_port}/v1?api-version=2") as critic:
        assert ask(critic).status == "ok"
    assert server.headers[0]["authorization"] == f"Basic {b64encode(b'me:p@s s').decode()}"


NOT_URLS = [
    "http://h:99999",
    "http://h:port/v1",
    "http://[::1",
    "http://",
    "http:///v1",
    "http://h:0",
    "ftp://h",
    "h:80",
]
NOT_URLS += ["http://a b/v1", "", "http://h:-1", "http://.../v1", "http://[gg]/v1", "http://h/v\x1b1", "http://h:８"]
NOT_URLS += [f"http://{'a' * 70}.org", "http://u:p@", "http://h:1:2/v1"]


@pytest.mark.parametrize("url", NOT_URLS)
def test_an_address_that_is_none_is_an_error_of_the_recipe(url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL") as error:
        critic_at(url)
    assert error.value.hint
    assert str(error.value).isprintable() or "\n" in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000/v1", "http://a_b:1/", "http://ü.de/v1", "https://h/@cf/x", "http://10.0.0.1"]
)
def test_an_address_that_is_one_is_kept_as_it_is(url: str) -> None:
    assert redact_url(url) == url.rstrip("/")


@pytest.mark.parametrize("key", ["kéy-0123456", "abc\ndef-0123", "\x1b[31mkey-0123", "日本語のキー"])
def test_a_key_that_no_header_can_carry_is_an_error_without_the_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="no header can carry") as error:
        critic_at("http://127.0.0.1:9/v1", api_key_env="MY_KEY")
    assert key not in str(error.value)


# --- terminals ---

HOSTILE = "\x1b[31m \x1b]0;owned\x07 \x9b2J \u202eevil \x08 \u2028 \ud83d"


def test_no_message_moves_a_terminal(httpserver: HTTPServer) -> None:
    body = {"error": {"message": HOSTILE}, "data": [{"id": f"a{HOSTILE}"}, {"id": f"b{HOSTILE}"}]}
    httpserver.expect_request("/v1/models").respond_with_json(body)
    httpserver.expect_request("/v1/chat/completions").respond_with_json(body, 400)
    lines: list[str] = []
    section = CriticSection(base_urls=(httpserver.url_for("/v1"),), model="m")
    with pytest.raises(ConfigError) as several:
        served_model(section)
    with critic_at(httpserver.url_for("/v1"), announce=lines.append) as critic:
        lines.append(ask(critic).reason)
        with pytest.raises(EndpointError) as refused:
            critic.check()
    assert len(lines) == 3  # the refusal, the reason, the count at the end
    lines += map(str, [several.value, refused.value, UserError(HOSTILE, where=HOSTILE, hint=HOSTILE)])
    lines += map(repr, [line(HOSTILE), warning(HOSTILE)])
    assert not [text for text in lines if set(text) & set("\x1b\x07\x9b\u202e\x08\u2028\ud83d")]
    assert sum("owned" in text for text in lines) == len(lines)


# --- the cache ---


def test_a_damaged_entry_is_asked_for_again_and_an_old_one_is_read(serve: Serve, tmp_path: Path) -> None:
    server, path = serve(), tmp_path / "c.sqlite"
    with critic_at(server.url, cache_path=path) as critic:
        first = [ask(critic, number) for number in range(8)]
    assert server.behaviours["ok"] == 8
    damages: list[Callable[[str], Any]] = [
        lambda text: text.replace("about", "abouT", 1),
        lambda text: text[:-5],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: '{"content": 5}',
        lambda text: b"\xff\x00",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"}),  # an older version's
    ]
    with closing(sqlite3.connect(path)) as other:
        rows = other.execute("SELECT key, value FROM replies ORDER BY key").fetchall()
        for (key, value), damage in zip(rows, damages, strict=True):
            other.execute("UPDATE replies SET value = ? WHERE key = ?", (damage(value), key))
        other.commit()
    lines: list[str] = []
    with critic_at(server.url, cache_path=path, announce=lines.append) as critic:
        again = [ask(critic, number) for number in range(8)]
        assert critic.cache is not None
        assert critic.cache.damaged == 7
    assert server.behaviours["ok"] == 8 + 7
    assert lines == [f"critic: 7 damaged replies of {path} were asked for again"]
    assert [critique.text for critique in again] == [critique.text for critique in first]


def test_a_reply_with_a_lone_surrogate_that_an_older_version_has_kept_is_used(serve: Serve, tmp_path: Path) -> None:
    server, path = serve(), tmp_path / "c.sqlite"
    with critic_at(server.url, cache_path=path) as critic:
        ask(critic)
    with closing(sqlite3.connect(path)) as other:
        ((value,),) = other.execute("SELECT value FROM replies").fetchall()
        old = {k: v for k, v in json.loads(value).items() if k not in ("sha256", "model")}
        old["content"] = "<step_1> so \ud83d\n<answer> 1"
        other.execute("UPDATE replies SET value = ?", (json.dumps(old),))
        other.commit()
    server.stop()
    with critic_at(server.url, cache_path=path, cache_only=True) as critic:
        critique = ask(critic)
    assert (critique.status, critique.text) == ("ok", "<step_1> so \ufffd\n<answer> 1")
    json.dumps(critique.raw, ensure_ascii=False).encode()


def test_a_cache_that_cannot_be_used_costs_calls_and_loses_none(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, lines = serve(), []

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    for method in ("put", "get", "claim"):
        monkeypatch.undo()
        with critic_at(server.url, cache_path=tmp_path / f"{method}.sqlite", announce=lines.append) as critic:
            monkeypatch.setattr(ReplyCache, method, full)
            assert [ask(critic, number).status for number in range(3)] == ["ok"] * 3
    assert server.behaviours["ok"] == 9
    assert len(lines) == 3
    assert all("disk is full" in line for line in lines)


def test_a_cache_that_finds_no_room_asks_for_room_and_not_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(ReplyCache, "_open", full)
    with pytest.raises(ConfigError, match="make room") as found:
        ReplyCache(tmp_path / "critiques.sqlite")
    assert "delete" not in str(found.value)


def test_a_ledger_that_cannot_be_written_loses_no_critique(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    server, lines = serve(), []
    monkeypatch.setattr(JsonLines, "append", full)
    with critic_at(server.url, ledger_path=tmp_path / "l.jsonl", announce=lines.append) as critic:
        assert [ask(critic, number).status for number in range(3)] == ["ok"] * 3
        assert critic.ledger.attempts == 3
    assert lines == [f"critic: the ledger cannot be written (No space left on device): {tmp_path / 'l.jsonl'}"]


_ASK = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_survival import critic_at, attempt
critic = critic_at({url!r}, cache_path=Path({cache!r}), ledger_path=Path({ledger!r}), concurrency=4)
futures = [critic.submit(attempt(number)) for number in range(12)]
[future.result() for future in futures]
"""


def test_calls_under_way_at_a_kill_are_counted(serve: Serve, tmp_path: Path) -> None:
    killed: list[bool] = []
    server = serve()  # the first two that come are answered, in whatever order they come
    server.script = lambda text, asked: "ok" if killed or server.behaviours["ok"] < 2 else "hang_until_released"
    cache, ledger = tmp_path / "c.sqlite", tmp_path / "l.jsonl"
    code = _ASK.format(
        path=[str(Path(__file__).parent), *sys.path], url=server.url, cache=str(cache), ledger=str(ledger)
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    while server.asked.total() < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed.append(True)
    with critic_at(server.url, cache_path=cache, ledger_path=ledger, concurrency=4) as critic:
        assert all(ask(critic, number).status == "ok" for number in range(12))
        assert critic.ledger.faults == {"in_flight": 4}
        assert critic.ledger.attempts == server.asked.total() == 12 + 4
    rows = [json.loads(row) for row in ledger.read_text().splitlines()]
    assert len(rows) == 16
    with critic_at(server.url, cache_path=cache, ledger_path=ledger) as critic:  # counted once
        assert ask(critic).cached
        assert critic.ledger.faults == {"in_flight": 4}
