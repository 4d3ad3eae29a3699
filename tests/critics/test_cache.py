from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from stepalign.critics.cache import ReplyCache, canonical_json, content_key
from stepalign.errors import ConfigError

SPAWN = multiprocessing.get_context("spawn")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_keys_are_canonical() -> None:
    assert content_key({"a": 1, "b": [1.5, "é"]}) == content_key({"b": [1.5, "é"], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})
    assert canonical_json({"b": "é\ud800", "a": None}) == '{"a":null,"b":"\\u00e9\\ud800"}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_first_reply_stays(tmp_path: Path) -> None:
    with_reply = ReplyCache(tmp_path / "deep" / "er" / "cache.db")
    assert with_reply.get("k") is None
    with_reply.put("k", {"content": "one"})
    with_reply.put("k", {"content": "two"})
    with_reply.close()
    again = ReplyCache(tmp_path / "deep" / "er" / "cache.db")
    assert again.get("k") == {"content": "one"}
    assert len(again) == 1


def test_claims_have_one_holder_and_a_lease(tmp_path: Path) -> None:
    clock = Clock()
    cache = ReplyCache(tmp_path / "cache.db", lease_seconds=60, clock=clock)
    assert cache.claim("k", "me")
    assert not cache.claim("k", "you")
    assert cache.is_claimed("k")
    clock.now += 50
    assert not cache.claim("k", "you")
    clock.now += 11
    assert not cache.is_claimed("k")
    assert cache.claim("k", "you")
    cache.release("k", "me")  # too late: the claim is somebody else's
    assert cache.is_claimed("k")
    cache.put("k", {"content": "x"})
    assert not cache.is_claimed("k")
    assert not cache.claim("k", "me")
    assert cache.claim("other", "me")
    cache.release_all("me")
    assert cache.claim("other", "you")


@pytest.mark.parametrize("content", [b"not a database at all, just text " * 100, b"\0" * 5000])
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="critic cache"):
        ReplyCache(path)
    assert path.read_bytes() == content


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    ReplyCache(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="format 99"):
        ReplyCache(path)
    with pytest.raises(ConfigError):
        ReplyCache(tmp_path / "cache.db" / "below-a-file.db")


def test_threads_share_one_cache(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache.db")
    won: list[str] = []

    def work(owner: str) -> None:
        for number in range(100):
            if cache.claim(str(number), owner):
                won.append(str(number))
                cache.put(str(number), {"owner": owner})

    threads = [threading.Thread(target=work, args=(f"t{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(map(str, range(100)))


def _claim_all(path: Path, start: str, results: multiprocessing.Queue[int]) -> None:
    while not Path(start).exists():
        time.sleep(0.005)
    cache = ReplyCache(path)  # all make the file in the same instant
    won = 0
    for number in range(200):
        if cache.claim(str(number), str(os.getpid())):
            won += 1
            cache.put(str(number), {"pid": os.getpid()})
    results.put(won)


def test_processes_share_one_cache(tmp_path: Path) -> None:
    results: multiprocessing.Queue[int] = SPAWN.Queue()
    start = tmp_path / "start"
    processes = [SPAWN.Process(target=_claim_all, args=(tmp_path / "cache.db", str(start), results)) for _ in range(6)]
    for process in processes:
        process.start()
    time.sleep(0.5)
    start.touch()
    won = [results.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    assert sum(won) == 200  # each key paid once, no lock errors (a failed process puts nothing)
    assert len(ReplyCache(tmp_path / "cache.db")) == 200


WRITER = """
import itertools, sys
from stepalign.critics.cache import ReplyCache
cache = ReplyCache(sys.argv[1], lease_seconds=0.2)
for number in itertools.count(int(sys.argv[2])):
    cache.claim(str(number), "writer")
    cache.put(str(number), {"number": number, "pad": "x" * 2000})
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_the_cache_sound(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    confirmed = -1
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(confirmed + 1)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        for _ in range(20):
            confirmed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        confirmed = max([confirmed, *map(int, process.stdout.read().split())])
        process.wait()
        cache = ReplyCache(path)
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        # every reply that was reported stored is there and whole
        assert all((cache.get(str(number)) or {}).get("number") == number for number in range(confirmed + 1))
        time.sleep(0.25)
        assert cache.claim("next", "me")  # the dead writer's lease has run out, the file takes writes
        cache.release("next", "me")
        cache.close()


def test_a_forked_child_opens_the_file_anew(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache.db")
    cache.put("parent", {"n": 1})
    child = os.fork()
    if child == 0:
        try:
            cache.put("child", {"n": 2})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert cache.get("child") == {"n": 2}
    assert cache.get("parent") == {"n": 1}
