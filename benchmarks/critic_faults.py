"""How many calls does a critique cost where the server fails? The fault server of the tests, on this machine.

    PYTHONPATH=tests/helpers python benchmarks/critic_faults.py

Two servers: one that ends 30 % of its calls in one of eleven faults, for 1,000 critiques and three seeds, and one that
refuses every call above eight at once (429, no Retry-After), for 500 critiques. Prints a line each and writes nothing.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from fault_server import FaultServer, Script

from stepalign.config import CriticSection
from stepalign.critics.endpoint import EndpointCritic
from stepalign.critics.servers import RetryPolicy
from stepalign.records import Attempt, Critique, Problem

FAULTS = ("retry_after 0.05", "retry_after_date", "status 500", "status 408", "cut_body", "cut_json", "html")
FAULTS += ("empty_choices", "null", "hang", "close")
QUICK = RetryPolicy(base_seconds=0.01, cap_seconds=0.05, jitter=lambda low, high: high)


def attempt(number: int) -> Attempt:
    problem = Problem(problem_id=f"p{number}", question=f"q{number}", answer="")
    return Attempt(rollout_id=f"r{number}", problem=problem, text="<step_1> an attempt")


def run(name: str, script: Callable[[FaultServer], Script], count: int, *, latency: float = 0.0) -> None:
    server = FaultServer(latency=latency)
    server.script = script(server)
    section = CriticSection(
        base_urls=(server.url,), model="critic", sees="nothing", temperature=0.6, concurrency=32, attempt_timeout=1.2
    )

    async def everything(critic: EndpointCritic) -> list[Critique]:
        return await asyncio.gather(*(critic.critique(attempt(number)) for number in range(count)))

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache.sqlite"
        with closing(EndpointCritic(section, prompt="{{ question }}", cache_path=cache, policy=QUICK)) as critic:
            started = time.perf_counter()
            critiques = asyncio.run(everything(critic))
            seconds = time.perf_counter() - started
    server.stop()
    right = sum(f"about q{n}\n" in c.text and c.rollout_id == f"r{n}" for n, c in enumerate(critiques))
    distinct = len({critique.rollout_id for critique in critiques})
    calls = sum(server.behaviours.values()) / count
    print(f"{name}: {right} of {count} right, {distinct} distinct, {calls:.3f} calls a critique, {seconds:.1f} s")


def failing(seed: int) -> Callable[[FaultServer], Script]:
    rng = random.Random(seed)
    return lambda server: lambda text, asked: rng.choice(FAULTS) if rng.random() < 0.3 else "ok"


def crowded(server: FaultServer) -> Script:
    return lambda text, asked: "ok" if server.under_way < 8 else "status 429"


if __name__ == "__main__":
    for seed in range(3):
        run(f"30 % faults, seed {seed}", failing(seed), 1000)
    run("429 above 8 at once", crowded, 500, latency=0.05)
