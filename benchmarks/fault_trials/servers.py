"""A critic's server and a sampler's server in a process of their own, steered through its standard input.

The critic reads problem and attempt out of the prompt and writes what the embedded task's own critic writes. Prints
their addresses as a line of JSON. The line "asked" gives how often each prompt was asked of the critic, and begins to
count anew; "faults SHARE" has the servers fail from then on; 'critic ["BEHAVIOUR", ...]' names how the critic behaves.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

from fault_server import FaultServer
from vllm_server import VllmServer

from stepalign.domains.arithmetic.critic import ArithmeticCritic
from stepalign.models.load import limit_threads, load_solver
from stepalign.records import Attempt, Problem

CRITIC_FAULTS = ("retry_after 0.05", "status 500", "cut_body", "cut_json", "html", "empty_choices", "null", "close")
READS = re.compile(r"<problem>\n(.*?)\n</problem>.*<attempt>\n(.*?)\n</attempt>", re.DOTALL)


def truthful(prompt: str) -> str:
    """How the critic's server behaves when nothing fails."""
    if (read := READS.search(prompt)) is None:
        return "ok"
    problem = Problem(problem_id="asked", question=read[1], answer="")
    critique = ArithmeticCritic().write(Attempt(rollout_id="asked", problem=problem, text=read[2]))
    return f"say <case>{critique.case}</case>\n{critique.text}"


def main() -> None:
    solver = load_solver("embedded:arithmetic")
    limit_threads(solver)
    critic, sampler = FaultServer(lambda text, asked: truthful(text), latency=0.02), VllmServer(solver.model)
    print(json.dumps({"critic": critic.url, "sampler": sampler.url}), flush=True)
    rng = random.Random(0)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "asked":
            with critic.lock:
                print(json.dumps(critic.asked), flush=True)
                critic.asked.clear()
        elif word == "faults":
            share = float(argument)
            critic.script = lambda text, asked, share=share: (
                rng.choice(CRITIC_FAULTS) if rng.random() < share else truthful(text)
            )
            sampler.script = lambda asked, body, share=share: (
                rng.choice(("status 500", "cut 3")) if rng.random() < share else "ok"
            )
            print("{}", flush=True)
        elif word == "critic":
            named = json.loads(argument)
            critic.script = lambda text, asked, named=named: rng.choice(named)
            print("{}", flush=True)
        for held in (critic.bodies, critic.headers, critic.times, critic.checks):
            held.clear()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
