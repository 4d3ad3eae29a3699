"""Does ``stepalign preflight`` say the right word where feedback fails, with a critic behind a socket?

    python benchmarks/preflight_cases.py [--num 8] [--case NAME]

Each case makes one thing wrong on the embedded task: the critic's replies, the prompt, or the verdicts. A line per
case: the word, the rules that hold, and whether both are as they should be. Exit code 1 where one is not.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepalign import Problem, preflight, silent
from stepalign.domains.arithmetic.critic import ArithmeticCritic, Faults
from stepalign.domains.arithmetic.task import diagnose
from stepalign.records import Attempt, Grade

GRADERS = "def right(text, answer):\n    return True\n\n\ndef wrong(text, answer):\n    return False\n"
Reply = Callable[[str, str, str], str]
"""(question, attempt, right answer) -> the critic's words."""


def scribe(*, within: bool = True, **faults: float) -> Reply:
    """The program's critique, with its faults; an error is quoted within its step, or in a step of the same number."""
    critic = ArithmeticCritic(faults=Faults(**faults))

    def reply(question: str, attempt: str, answer: str) -> str:
        problem = Problem(problem_id="p", question=question, answer=answer)
        grade = Grade.of("incorrect")
        found = critic.write(Attempt(rollout_id=attempt, problem=problem, text=attempt, grade=grade))
        # A reply in which a number comes twice is malformed; a model that quotes corrects within the step.
        text = re.sub(r"(<step_\d+>)([^<]*)\1", r"\1\2rather", found.text) if within else found.text
        return f"<case>{found.case}</case>\n{text}"

    return reply


def quoting_hint(question: str, attempt: str, answer: str) -> str:
    """The first wrong step in its own words."""
    found = diagnose(question, attempt)
    wrong = found.first_error.isdigit()
    return found.attempt.steps[int(found.first_error) - 1].text if wrong else "right"


def leaking_hint(question: str, attempt: str, answer: str) -> str:
    return f"<answer> {answer}"


HINT = {"condition": "hint"}
CASES: dict[str, tuple[Reply, dict[str, Any], str, str]] = {
    "quoting_hint": (quoting_hint, {**HINT, "critic.policies.quotes_wrong_step": "use"}, "no", "nothing_to_pass_on"),
    "quoting_hint_and_masked": (quoting_hint, HINT, "no", "quotes_errors"),
    "quoted": (scribe(quotes_wrong=1.0), {"critic.policies.quotes_wrong_step": "use"}, "doubtful", "some_quoted"),
    "quoted_and_masked": (scribe(quotes_wrong=1.0), {}, "no", "quotes_errors"),
    "malformed": (scribe(within=False, quotes_wrong=1.0), {}, "doubtful", "some_unusable"),
    "leaked": (leaking_hint, HINT, "doubtful", "answer_given_away"),
    "misses": (
        scribe(misses=1.0),
        {"critic.policies.misses_error": "use", "critic.policies.wrong_answer": "use"},
        "no",
        "teaches_the_error",
    ),
    "all_right": (scribe(), {"data.grader": "graders:right"}, "no", "all_right"),
    "all_wrong": (scribe(), {"data.grader": "graders:wrong"}, "no", "all_wrong"),
    "not_understood": (scribe(), {}, "no", "not_understood"),
    "thinking": (scribe(), {"condition": "reference"}, "doubtful", "thinking_with_the_answer"),
}
"""Name -> the critic, keys, and the word and rule that are right. The prompts of critics mark what they show."""
TAUGHT: dict[str, Callable[[str], str]] = {
    "not_understood": lambda response: response.partition(" <answer>")[0],
    "thinking": lambda response: f"<think> {response.replace(' <answer>', ' </think> <answer>')}",
}
"""Cases with a solver of their own: the shipped one, taught to answer so for a while."""


def teach(rewrite: Callable[[str], str], folder: Path, num_steps: int = 200) -> None:
    """The shipped solver after some more steps of its warm start, with other responses and two more words."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "dev"))
    import corpus
    import make_embedded
    from stepalign import load_solver
    from stepalign.domains.arithmetic.solver import build_tokenizer
    from stepalign.domains.arithmetic.task import EMBEDDED, VOCABULARY
    from stepalign.models.load import Solver, save_solver

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokenizer = load_solver(EMBEDDED).model, build_tokenizer((*VOCABULARY, "<think>", "</think>"))
    model.resize_token_embeddings(len(tokenizer))
    solver, knowledge, rng = Solver(model, tokenizer), corpus.draw_knowledge(1), random.Random(0)
    optimizers, phase = make_embedded.optimizers_of(solver, 2e-3, 0.01), make_embedded.WarmStart().phases[-1]
    solver.model.train()
    for step in range(num_steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20, (num_steps - step) / 50)
        batch = make_embedded.draw_batch(rng, knowledge, phase, phase.easier_steps, 32)
        other = {kind: [replace(one, response=rewrite(one.response)) for one in rows] for kind, rows in batch.items()}
        rows = {kind: make_embedded.encode(solver, examples) for kind, examples in other.items()}
        make_embedded.train_step(solver, rows, optimizers)
    solver.model.eval()
    save_solver(solver, folder)


def run_case(name: str, num: int) -> tuple[bool, str]:
    """(whether word and rule are right, both in words)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from fault_server import FaultServer

    reply, keys, word, rule = CASES[name]

    def script(text: str, asked: int) -> str:
        parts = {
            tag: re.search(f"<{tag}>\n(.*?)\n</{tag}>", text, re.S) for tag in ("problem", "attempt", "right_answer")
        }
        return "say " + reply(*(found.group(1) if found else "" for found in parts.values()))

    with tempfile.TemporaryDirectory() as folder, closing(_Stopped(FaultServer(script))) as serving:
        (Path(folder) / "graders.py").write_text(GRADERS, encoding="utf-8")
        os.chdir(folder)
        sys.path.insert(0, folder)
        if name in TAUGHT:
            teach(TAUGHT[name], Path(folder) / "solver")
            keys = {**keys, "model.path": str(Path(folder) / "solver")}
        critic = {"critic.kind": "endpoint", "critic.model": "critic", "critic.base_urls": [serving.server.url]}
        shared = {"condition": "step_aligned", "data.max_train": 40, "signal.num_shown": 1, "critic.timeout": 60.0}
        found = preflight(
            "arithmetic", {**shared, **critic, **keys}, out=Path(folder) / "look", num=num, listener=silent
        )
    own = found["designs"][found["condition"]]
    rules = [reason["rule"] for reason in own["details"]]
    return own["verdict"] == word and rule in rules, f"{own['verdict']} ({', '.join(rules)})"


class _Stopped:
    def __init__(self, server: Any) -> None:
        self.server = server

    def close(self) -> None:
        self.server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    failed = 0
    for name in [options.case] if options.case else CASES:
        fine, text = run_case(name, options.num)
        failed += not fine
        print(f"{name:18} {'as it should be' if fine else 'WRONG':16} {text}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
