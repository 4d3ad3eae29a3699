"""Does the linter find the faults of a critic whose faults are known? All of one kind at a time, and none.

    python benchmarks/findings.py [--repeats 3] [--seed 0]

Attempts at the embedded training problems in the solver's words; in seven of ten one step has a wrong result, from
which the rest follows. The programmatic critic criticises them with one fault in every critique where it applies; each
critique is then read as text alone, as a served critic's would be. Prints a table and writes nothing.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace

from stepalign.config import load_config
from stepalign.domains.arithmetic.critic import ArithmeticCritic, Faults
from stepalign.domains.arithmetic.task import MODULUS, Trace, parse_question, write_solution
from stepalign.domains.math.grade import Grade
from stepalign.domains.table import load_set
from stepalign.feedback import findings
from stepalign.records import Attempt, Problem
from stepalign.rollouts.review import Rules, review

SHOWN = ("quotes_wrong_step", "wrong_answer", "misses_error", "invents_error", "full_solution", "not_verbatim")
SHARE_WRONG = 0.7


def attempts(problems: list[Problem], repeats: int, rng: random.Random) -> Iterator[tuple[Attempt, str]]:
    """Attempts, each with the label of its wrong step, "" for none."""
    for number, problem in enumerate(problems * repeats):
        trace = write_solution(rng, parse_question(problem.question), rng.choice(("L", "R")), "solver")
        wrong = rng.randrange(len(trace.steps)) if rng.random() < SHARE_WRONG else None
        if wrong is not None:
            trace = with_error(trace, wrong, rng.randrange(1, MODULUS))
        yield attempt_of(problem, f"attempt-{number}", trace), "" if wrong is None else str(wrong + 1)


def with_error(trace: Trace, wrong: int, shift: int) -> Trace:
    """The trace with one wrong result, and everything behind it carried on from there."""
    steps, value = list(trace.steps[:wrong]), trace.steps[wrong].value
    for step in trace.steps[wrong:]:
        result = (value + step.signed_operand + (shift if len(steps) == wrong else 0)) % MODULUS
        steps.append(replace(step, value=value, result=result))
        value = result
    return Trace(tuple(steps), value)


def attempt_of(problem: Problem, name: str, trace: Trace) -> Attempt:
    grade = Grade(score=float(str(trace.answer) == problem.answer), answer=str(trace.answer))
    return Attempt(rollout_id=name, problem=problem, text=trace.text, grade=grade)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="attempts at each problem")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = list(load_set(load_config("arithmetic").data, "train").problems)
    made = list(attempts(problems, options.repeats, random.Random(options.seed)))
    rules = Rules(policies=findings.policies({}, served=True), retries=0)

    print(f"{len(made)} attempts, {sum(bool(label) for _, label in made)} of them wrong\n")
    print(f"| critic | {' | '.join(SHOWN)} | first error as it is | copied verbatim | ms each |")
    print("|---|" + "---:|" * (len(SHOWN) + 3))
    for fault in ("", *(field.name for field in fields(Faults))):
        critic = ArithmeticCritic(faults=Faults(**({fault: 1.0} if fault else {})))
        found: Counter[str] = Counter()
        located = 0
        shares: list[float] = []
        started = time.process_time()
        for attempt, label in made:
            # The label of the program is hidden: only the text counts.
            hidden = replace(critic.write(attempt), first_error="", case="")
            judged = review(attempt, hidden, rules)
            found.update(list(judged.details))
            located += judged.critique.first_error == label
            if judged.alignment and not math.isnan(judged.alignment.verbatim_share):
                shares.append(judged.alignment.verbatim_share)
        each = 1000 * (time.process_time() - started) / len(made)
        counts = " | ".join(str(found[name]) for name in SHOWN)
        mean = f"{100 * sum(shares) / len(shares):.1f} %"
        print(f"| {fault or 'none'} | {counts} | {located} of {len(made)} | {mean} | {each:.2f} |")


if __name__ == "__main__":
    main()
