"""The lab's parts by themselves: requests, examples, the worker, what is missing."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stepalign.config import changed, load_config, recipe_folder
from stepalign.errors import ConfigError
from stepalign.verbs.lab.request import load_examples, read_request
from stepalign.verbs.lab.server import bind, check_installed
from stepalign.verbs.lab.worker import Cancelled, Worker

REQUEST = {"question": "1 + 1", "completion": "<answer> 2", "contexts": {"a": "right"}}


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """On a thread of its own: the browser tests of the same process keep a loop running on the main one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": {}}, "contexts"),
        ({"contexts": dict.fromkeys("abcde", "x")}, "contexts"),
        ({"contexts": {"a": 1}}, "contexts.a"),
        ({"contexts": {"": "x"}}, "contexts"),
        ({"question": None}, "question"),
        ({"completion": "x" * 200_001}, "completion"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"question": "\ud800"}, "question"),
        ({"prompts": {"student": "/etc/passwd"}}, "prompts"),
        ({"prompts": {"critic": "x {{ y }}"}}, "prompts"),
    ],
)
def test_a_request_that_cannot_be_scored_is_refused_by_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_request({**REQUEST, **change})


def test_examples_are_the_lines_that_can_be_scored(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({**REQUEST, "note": "more fields are fine"}) + "\n")
    rows = [{**REQUEST, "name": "first"}, {**REQUEST, "contexts": dict.fromkeys("abcde", "x")}, {"question": "only"}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    examples, left_out = load_examples(tmp_path)
    assert [name for name, _ in examples] == ["one", "first"]
    assert [reason.partition(":")[0] for reason in left_out] == ["contexts", "completion", "Expecting value"]
    assert load_examples(tmp_path / "nowhere") == ([], [])


def test_each_design_is_filled_in_by_a_critic_of_its_own_form() -> None:
    from stepalign.verbs.lab.scorer import Scorer

    request = read_request({**REQUEST, "question": "17 + 6 - 5 + 4", "completion": "<step_1> 17 + 6 = 4 ; <answer> 4"})
    names = ("hint", "step_aligned", "free_critique", "hint")
    scorer = Scorer(changed(load_config("arithmetic"), {"critic.writes": "edits"}), from_recipe=True)
    together = [scorer.fill(name, request) for name in names]
    scorer.close()
    assert together[0] == together[3]
    assert len(set(together)) == 3
    assert "<answer>" in together[1]


def test_every_shipped_example_can_be_scored() -> None:
    folder = recipe_folder() / "examples"
    examples, left_out = load_examples(folder)
    assert left_out == []
    assert {path.stem for path in folder.glob("*.jsonl")} <= {name for name, _ in examples}


def test_a_newer_request_of_the_same_page_takes_the_place_of_the_older() -> None:
    started, results = threading.Event(), []

    def slow(cancelled: threading.Event) -> str:
        started.set()
        if cancelled.wait(20):
            raise Cancelled
        return "too late"

    async def page() -> None:
        worker = Worker()
        first = asyncio.create_task(worker.run("page", slow))
        await asyncio.to_thread(started.wait, 20)
        waiting = asyncio.create_task(worker.run("other", lambda _: "other page"))
        never_begun = asyncio.create_task(worker.run("page", lambda _: "skipped"))
        newest = asyncio.create_task(worker.run("page", lambda _: "newest"))
        results.extend(await asyncio.gather(first, waiting, never_begun, newest, return_exceptions=True))
        worker.close()

    run(page())
    assert isinstance(results[0], Cancelled)
    assert results[1] == "other page"
    assert isinstance(results[2], Cancelled)
    assert results[3] == "newest"


def test_a_request_can_be_cancelled_while_it_runs() -> None:
    async def page() -> None:
        worker = Worker()
        started = threading.Event()

        def slow(cancelled: threading.Event) -> None:
            started.set()
            assert cancelled.wait(20)
            raise Cancelled

        task = asyncio.create_task(worker.run("page", slow))
        await asyncio.to_thread(started.wait, 20)
        worker.cancel("page")
        with pytest.raises(Cancelled):
            await task
        worker.close()

    run(page())


def test_a_taken_port_and_a_missing_library_are_said_with_what_mends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind(0) as found:
        found.listen()
        taken = found.getsockname()[1]
        with pytest.raises(ConfigError, match="cannot listen on port") as caught:
            bind(taken)
    assert "--port" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError) as caught:
        check_installed()
    assert caught.value.hint == "pip install 'stepalign[serve]'"
