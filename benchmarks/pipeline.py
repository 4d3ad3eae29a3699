"""How close to its floor is a step whose parts only wait? The stream of a run, with injected latencies.

    python benchmarks/pipeline.py [--steps 12] [--svg docs/results/pipeline.svg]

32 completions a step end after 0 to 0.4 s, spread evenly; a critique takes 1 s in one of 32 slots; the update takes
0.5 s, 0.05 of it for the optimizer. Everything between is the package's own: collector, grader, designs, Samples,
threads. Floors: the chain of the slowest completion, its critique and the update; with ``ahead`` = k the longest stage
or chain / (k + 1); with ``accumulate`` the last critique and the optimizer, or, as here, the first critique and the
whole update, which is then never interrupted. Prints a table and a timeline.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepalign.config import SamplingSection
from stepalign.domains.arithmetic.task import make_problem, parse_question
from stepalign.domains.math.grading import Grader
from stepalign.feedback import designs
from stepalign.feedback.prompts import load_template
from stepalign.models.load import load_solver
from stepalign.models.prompts import PromptBuilder
from stepalign.records import Attempt, Completion, Critique
from stepalign.rollouts.collect import RolloutCollector, RolloutMaker
from stepalign.rollouts.environment import SingleTurn
from stepalign.rollouts.samples import SampleMaker
from stepalign.rollouts.stream import Batch, Stream
from stepalign.waiting import wait_for

SAMPLES, LONGEST, CRITIC, SLOTS, UPDATE, OPTIMIZER = 32, 0.4, 1.0, 32, 0.5, 0.05
CHAIN, STAGE = LONGEST + CRITIC + UPDATE, max(LONGEST, CRITIC, UPDATE)


class Waiting:
    """A sampler whose completions end evenly spread."""

    version = 0

    async def publish(self, weights: Any, version: int) -> None:
        self.version = version

    def close(self) -> None: ...

    async def sample(self, prompts: Sequence[Any], *, num_samples: int, on_finished: Any = None, **_: Any) -> Any:
        version = self.version

        async def complete(row: int) -> list[Completion]:
            await asyncio.sleep(LONGEST * (row + 1) / len(prompts))
            one = Completion(ids=(7, 1), log_probs=(-1.0, -1.0), finish_reason="stop", policy_version=version)
            on_finished(row, 0, one)
            return [one]

        return await asyncio.gather(*map(complete, range(len(prompts))))


class Critic:
    """A second each, so many at once."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(SLOTS)

    async def critique(self, attempt: Attempt, **_: Any) -> Critique:
        async with self.free:
            await asyncio.sleep(CRITIC)
        return Critique(rollout_id=attempt.rollout_id, critic="waits", status="ok", text=f"<answer> {attempt.answer}")


def make_stream(grader: Grader, ahead: int) -> tuple[Stream, Waiting]:
    solver, sampler = load_solver("embedded:arithmetic"), Waiting()
    prompts = PromptBuilder(
        solver.tokenizer, student=load_template("{{ question }}"), self_teacher=load_template("{{ feedback }}")
    )
    maker = RolloutMaker(tokenizer=solver.tokenizer, sampler=sampler, environment=SingleTurn(prompts), grader=grader)
    stream = Stream(
        collector=RolloutCollector(maker=maker, sampling=SamplingSection(max_completion_length=8), critic=Critic()),
        samples=SampleMaker(
            tokenizer=solver.tokenizer, prompts=prompts, condition=designs.find_condition("free_critique")
        ),
        problems=[make_problem(parse_question(f"{a} + {b} + 1"), rho=0.0) for a in range(1, 9) for b in range(1, 9)],
        problems_per_step=SAMPLES,
        seed=0,
        ahead=ahead,
        overlaps=True,
    )
    return stream, sampler


Spans = list[tuple[str, float, float]]


def one_after_another(stream: Stream, sampler: Waiting, steps: int) -> tuple[list[float], Spans]:
    """(when each step ended, spans)."""
    ends: list[float] = []
    spans: Spans = []
    for step, batch in enumerate(stream.batches(0, steps)):
        begin = time.time()
        time.sleep(UPDATE)
        spans += [*_collected(batch), ("update", begin, time.time())]
        wait_for(sampler.publish({}, step + 1))
        ends.append(time.time())
    return ends, spans


def as_they_come(stream: Stream, sampler: Waiting, steps: int) -> tuple[list[float], Spans]:
    ends: list[float] = []
    spans: Spans = []
    for step in range(steps):
        arriving = stream.arriving(step)
        while True:
            try:
                part = next(arriving)
            except StopIteration as end:
                spans += _collected(end.value)
                break
            begin = time.time()
            time.sleep((UPDATE - OPTIMIZER) * len(part) / SAMPLES)
            spans.append(("update", begin, time.time()))
        begin = time.time()
        time.sleep(OPTIMIZER)
        spans.append(("update", begin, time.time()))
        wait_for(sampler.publish({}, step + 1))
        ends.append(time.time())
    return ends, spans


def _collected(batch: Batch) -> Spans:
    begin, sampled, end = batch.times
    return [("rollouts", begin, sampled), ("critiques", sampled, end)]


MODES: dict[str, tuple[Callable[..., tuple[list[float], Spans]], int, float]] = {
    "ahead = 0": (one_after_another, 0, CHAIN),
    "ahead = 0, accumulate": (
        as_they_come,
        0,
        max(LONGEST + CRITIC + OPTIMIZER, LONGEST / SAMPLES + CRITIC + UPDATE),
    ),
    "ahead = 1": (one_after_another, 1, max(STAGE, CHAIN / 2)),
    "ahead = 2": (one_after_another, 2, max(STAGE, CHAIN / 3)),
}
COLOURS = {"rollouts": "#4c78a8", "critiques": "#f2a541", "update": "#59a14f"}


def picture(found: dict[str, tuple[list[float], Spans]], seconds: float) -> str:
    """The first seconds of each mode, a row of strips each."""
    width, row, parts = 900, 74, []
    for place, (name, (_, spans)) in enumerate(found.items()):
        start, top = min(begin for _, begin, _ in spans), 30 + place * row
        parts.append(f'<text x="0" y="{top}" font-size="13">{name}</text>')
        for kind, begin, end in spans:
            left, right = ((t - start) / seconds * (width - 20) for t in (begin, min(end, start + seconds)))
            if right > left:
                y = top + 6 + 18 * list(COLOURS).index(kind)
                parts.append(
                    f'<rect x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="15" fill="{COLOURS[kind]}" '
                    f'stroke="white" opacity="0.85"><title>{kind}</title></rect>'
                )
    height = 50 + row * len(found)
    for second in range(int(seconds) + 1):
        x = second / seconds * (width - 20)
        parts.append(f'<text x="{x:.0f}" y="{height - 6}" font-size="11" fill="#777">{second} s</text>')
    keys = "".join(
        f'<text x="{260 + 110 * i}" y="14" font-size="13" fill="{colour}">{kind}</text>'
        for i, (kind, colour) in enumerate(COLOURS.items())
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return f"{head}<title>The first {seconds:g} seconds of each mode</title>{keys}{''.join(parts)}</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    print(f"sum of stages {CHAIN:.2f} s, longest stage {STAGE:.2f} s; seconds per step")
    print("| mode | floor | median step | over the floor | all steps |\n| --- | --- | --- | --- | --- |")
    found = {}
    with Grader() as grader:
        for name, (run, ahead, floor) in MODES.items():
            stream, sampler = make_stream(grader, ahead)
            stream.batch(stream.problems[:1], 0)  # the grader's children are up
            begin = time.time()
            ends, _ = found[name] = run(stream, sampler, options.steps)
            steps = [b - a for a, b in itertools.pairwise(ends)]
            median = statistics.median(steps)
            whole = (ends[-1] - begin) / options.steps
            print(f"| {name} | {floor:.2f} | {median:.2f} | {median / floor:.2f}x | {whole:.2f} |", flush=True)
    if options.svg:
        options.svg.write_text(picture(found, 8.0), encoding="utf-8")


if __name__ == "__main__":
    main()
