"""How close to ideal is a critic that takes two seconds? 512 critiques against a local server with 32 slots.

    python benchmarks/critics.py [--critiques 512] [--latency 2] [--slots 32]

The server is a process of its own that answers after a fixed time and works on so many requests at once, so the ideal
is critiques / slots * latency. In the same run, against the same server: the bare openai client with a semaphore (the
floor that a script of ten lines reaches), our critic with its cache and validation, and the whole of
``stepalign critique`` (reading, grading, aligning, writing, page). Prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

QUESTION = "Add 1 to {n} and double it."
ATTEMPT = "<step_1> {n} + 1 = {m} <step_2> {m} * 2 = 3 <answer> 3"
CRITIQUE = "<case>D</case> <step_1> {n} + 1 = {m} <step_2> {m} * 2 = {a} <answer> {a}"


# --- the server ---


def serve(port: Any, latency: float, slots: int) -> None:
    asyncio.run(_serve(port, latency, slots))


async def _serve(port: Any, latency: float, slots: int) -> None:
    free = asyncio.Semaphore(slots)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = next((int(h.split(b":")[1]) for h in head if h.lower().startswith(b"content-length")), 0)
            body = json.loads(await reader.readexactly(length)) if length else None
            if body is None:
                reply: dict[str, Any] = {"object": "list", "data": [{"id": "critic"}]}
            else:
                async with free:
                    await asyncio.sleep(latency)
                reply = _chat(body["messages"][-1]["content"])
            data = json.dumps(reply).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=512)
    port.value = server.sockets[0].getsockname()[1]
    await server.serve_forever()


async def _head(reader: asyncio.StreamReader) -> list[bytes]:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return []


def _chat(text: str) -> dict[str, Any]:
    n = int(text.partition("Add 1 to ")[2].partition(" ")[0])
    content = CRITIQUE.format(n=n, m=n + 1, a=2 * n + 2)
    message = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"choices": [message], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}


# --- the three ways ---


def bare_client(url: str, count: int, slots: int, folder: Path) -> int:
    """A script of ten lines: no cache, no retries, nothing validated."""
    import openai

    async def everything() -> list[Any]:
        gate = asyncio.Semaphore(slots)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def one(n: int) -> Any:
                async with gate:
                    return await client.chat.completions.create(
                        model="critic", messages=[{"role": "user", "content": QUESTION.format(n=n)}]
                    )

            return await asyncio.gather(*(one(n) for n in range(count)))

    return len(asyncio.run(everything()))


def our_critic(url: str, count: int, slots: int, folder: Path) -> int:
    """The critic by itself, with its cache on disk."""
    from stepalign.config import CriticSection
    from stepalign.critics.endpoint import EndpointCritic

    section = CriticSection(base_urls=(url,), model="critic", concurrency=slots)
    files = {"cache_path": folder / "cache.sqlite", "ledger_path": folder / "ledger.jsonl"}
    with closing(EndpointCritic(section, **files)) as critic:
        futures = [critic.submit(attempt) for attempt in _attempts(folder, count)]
        critiques = [future.result() for future in futures]
    return sum(critique.status == "ok" for critique in critiques)


def whole_command(url: str, count: int, slots: int, folder: Path) -> int:
    """``stepalign critique`` without the start of its process."""
    from stepalign.config import changed, load_config
    from stepalign.verbs.attempts import read_attempts
    from stepalign.verbs.critique import critique_rollouts

    file = _attempts_file(folder, count)
    keys = {"critic.kind": "endpoint", "critic.base_urls": [url], "critic.model": "critic", "critic.concurrency": slots}
    config = changed(load_config(None), keys)
    summary = critique_rollouts(config, read_attempts(file), folder / "out", resume=False)
    return summary["without_finding"]


WAYS: dict[str, Callable[[str, int, int, Path], int]] = {
    "bare openai client": bare_client,
    "our critic, with cache and ledger": our_critic,
    "stepalign critique, all of it": whole_command,
}


def _attempts_file(folder: Path, count: int) -> Path:
    file = folder / "attempts.jsonl"
    rows = [
        {"question": QUESTION.format(n=n), "completion": ATTEMPT.format(n=n, m=n + 1), "answer": str(2 * n + 2)}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _attempts(folder: Path, count: int) -> Any:
    from stepalign.verbs.attempts import read_attempts

    return read_attempts(_attempts_file(folder, count)).attempts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critiques", type=int, default=512)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds per request")
    parser.add_argument("--slots", type=int, default=32, help="requests the server works on at once")
    options = parser.parse_args()

    import openai  # noqa: F401 - its start is nobody's throughput

    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port, options.latency, options.slots), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port.value}/v1"
    ideal = options.critiques / options.slots * options.latency
    print(f"{options.critiques} critiques, {options.latency:g} s each, {options.slots} slots: ideal {ideal:.1f} s\n")
    print("| way | usable | wall s | of ideal | CPU ms a critique |\n| --- | ---: | ---: | ---: | ---: |")
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            usable = way(url, options.critiques, options.slots, Path(folder))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"| {name} | {usable} | {wall:.1f} | {wall / ideal:.3f}x | {1e3 * cpu / options.critiques:.1f} |")
    server.terminate()


if __name__ == "__main__":
    main()
