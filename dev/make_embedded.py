"""Make the embedded solver from nothing: a tiny model, its corpus, one deterministic run on one thread.

The loop is ordinary next-token training on the response tokens of the corpus in ``corpus.py``: hidden
matrices with Muon, embedding and norms with AdamW, one warm-up and cosine schedule a phase.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import corpus as arithmetic_corpus
from corpus import Example, Knowledge, Mixture
from stepalign.domains.arithmetic import task as arithmetic
from stepalign.domains.arithmetic.solver import build_tiny_solver, build_tokenizer
from stepalign.errors import LockedError
from stepalign.models.load import Solver, save_solver
from stepalign.models.prompts import decode
from stepalign.models.sampling.local import LocalSampler
from stepalign.waiting import wait_for


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training on one mixture."""

    num_steps: int
    learning_rate: float
    mixture: Mixture
    easier_steps: int = 0
    """For so many steps at the start, chains of ``easier_lengths``; short chains teach copying sooner."""
    easier_lengths: tuple[int, int] = (3, 6)


@dataclass(frozen=True, slots=True)
class WarmStart:
    """The whole recipe of the shipped weights.

    Of seeds 0 and 1, seed 1 was taken for its better copy test, before any training run on either.
    """

    seed: int = 1
    batch_size: int = 64
    weight_decay: float = 0.01
    phases: tuple[Phase, ...] = (
        Phase(1000, 4e-3, Mixture(in_context=0.58, perturbed=0.60, max_perturbed=4, uniform=0.75), easier_steps=330),
        Phase(350, 2.5e-3, Mixture(in_context=0.62, perturbed=0.70, max_perturbed=4, uniform=0.85)),
    )


@dataclass(slots=True)
class Report:
    """The progress of ``warm_start``."""

    step: int
    total: int
    losses: dict[str, float] = field(default_factory=dict)
    """Mean nats per response token: "plain" and "in context"."""


def warm_start(recipe: WarmStart, on_step: Callable[[Report], None] = lambda _: None) -> Solver:
    """Train the embedded solver. Deterministic on one thread: same recipe, same machine, same bits."""
    tokenizer = build_tokenizer(arithmetic.VOCABULARY)
    solver = build_tiny_solver(tokenizer, seed=recipe.seed)
    knowledge = arithmetic_corpus.draw_knowledge(recipe.seed)
    rng = random.Random(f"corpus-{recipe.seed}")
    total = sum(phase.num_steps for phase in recipe.phases)
    done = 0
    solver.model.train()
    for phase in recipe.phases:
        optimizers = optimizers_of(solver, phase.learning_rate, recipe.weight_decay)
        for step in range(phase.num_steps):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = phase.learning_rate * schedule(step, phase.num_steps)
            batch = draw_batch(rng, knowledge, phase, step, recipe.batch_size)
            losses = train_step(
                solver, {kind: encode(solver, examples) for kind, examples in batch.items()}, optimizers
            )
            done += 1
            on_step(Report(done, total, losses))
    solver.model.eval()
    return solver


def optimizers_of(solver: Solver, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in solver.model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in solver.model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))]


def schedule(step: int, num_steps: int, warmup: int = 100, floor: float = 0.05) -> float:
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def draw_batch(
    rng: random.Random, knowledge: Knowledge, phase: Phase, step: int, batch_size: int
) -> dict[str, list[Example]]:
    """Plain and in-context examples apart: their lengths differ, and one padded batch would waste a third."""
    mixture = phase.mixture
    if step < phase.easier_steps:
        mixture = _with_lengths(mixture, phase.easier_lengths)
    num_in_context = round(mixture.in_context * batch_size)
    counts = {"plain": batch_size - num_in_context, "in context": num_in_context}
    return {
        kind: [
            arithmetic_corpus.draw_example(rng, knowledge, mixture, in_context=kind == "in context")
            for _ in range(count)
        ]
        for kind, count in counts.items()
    }


def _with_lengths(mixture: Mixture, lengths: tuple[int, int]) -> Mixture:
    return replace(mixture, num_steps=lengths)


def train_step(
    solver: Solver,
    encoded: dict[str, tuple[torch.Tensor, torch.Tensor]],
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[str, float]:
    """One step on ids and labels by kind of example; the mean nats per labelled token of each."""
    num_tokens = sum(int((labels_BS >= 0).sum()) for _, labels_BS in encoded.values())
    means: dict[str, float] = {}
    for kind, (ids_BS, labels_BS) in encoded.items():
        loss_sum, count = response_loss(solver, ids_BS, labels_BS)
        (loss_sum / num_tokens).backward()  # sum first, divide once by the count of the whole batch
        means[kind] = float(loss_sum.detach()) / count
    torch.nn.utils.clip_grad_norm_(solver.model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return means


def response_loss(solver: Solver, ids_BS: torch.Tensor, labels_BS: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Summed next-token loss in nats over the labelled positions, and their number."""
    hidden_BSH = solver.decoder(input_ids=ids_BS, use_cache=False).last_hidden_state
    # Right padding under causal attention: no real token ever attends to a pad, so no mask is needed.
    targets = labels_BS[:, 1:]
    kept = targets >= 0
    logits_NV = solver.logits(hidden_BSH[:, :-1][kept])
    return torch.nn.functional.cross_entropy(logits_NV, targets[kept], reduction="sum"), int(kept.sum())


def encode(solver: Solver, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, right-padded; labels are -1 outside the response."""
    ids = solver.tokenizer.get_vocab()
    rows = []
    for example in examples:
        prompt = ["<|user|>", *example.prompt.split(), "<|assistant|>"]
        response = [*example.response.split(), "<|end|>"]
        rows.append((len(prompt), [ids[word] for word in (*prompt, *response)]))
    width = max(len(row) for _, row in rows)
    ids_BS = torch.full((len(rows), width), ids["<|pad|>"])
    labels_BS = torch.full((len(rows), width), -1)
    for index, (start, row) in enumerate(rows):
        ids_BS[index, : len(row)] = torch.tensor(row)
        labels_BS[index, start : len(row)] = torch.tensor(row[start:])
    return ids_BS, labels_BS


# ---------------------------------------------------------------------------------------------------------------------
# Does the self-teacher read?

COPY_KINDS = ("true", "near", "far", "own wrong", "draft true", "draft far", "no context")


@torch.no_grad()
def copy_test(solver: Solver, knowledge: Knowledge, *, num_contexts: int, seed: int = 1) -> dict[str, float]:
    """Mean probability of the value that the context states, at the place where it states it.

    Kinds of stated values: "true"; "near" (off by one or two); "far" (off by five or more); "own wrong" (the wrong
    result the solver believes in, weak facts only); "draft true" and "draft far" (behind a draft marked wrong);
    "no context" is the control: probability of the true value when nothing is shown. Keys are "KIND/strong" and
    "KIND/weak" facts. Temperature 1.
    """
    rng = random.Random(f"copy-{seed}")
    results: dict[str, float] = {}
    for kind in COPY_KINDS:
        for fact in ("strong", "weak"):
            if (kind, fact) == ("own wrong", "strong"):
                continue
            probes = [_draw_probe(rng, knowledge, kind, weak=fact == "weak") for _ in range(num_contexts)]
            results[f"{kind}/{fact}"] = _mean_probability(solver, probes)
    return results


def _draw_probe(rng: random.Random, knowledge: Knowledge, kind: str, *, weak: bool) -> tuple[str, str, int]:
    """(user turn, beginning of the response up to the result in question, the stated value)."""
    while True:
        chain = arithmetic_corpus.draw_chain(rng, (5, 7))
        guide = arithmetic.write_solution(rng, chain, rng.choice(("L", "R")), rng.choice(("solver", "reference")))
        if kind == "no context":  # as the solver writes by itself
            guide = arithmetic.write_solution(rng, chain, "L", "solver")
        places = [i for i, s in enumerate(guide.steps) if ((s.value, s.signed_operand) in knowledge.weak) == weak]
        if places:
            break
    place = rng.choice(places)
    said = guide.steps[place]
    true = said.result
    offsets = {
        "near": lambda: rng.choice((-2, -1, 1, 2)),
        "far": lambda: rng.choice((-1, 1)) * rng.randint(5, 10),
        "own wrong": lambda: knowledge.weak[said.value, said.signed_operand][0] - true,
    }
    stated = (true + offsets.get(kind.removeprefix("draft "), lambda: 0)()) % arithmetic.MODULUS
    guide = _restate(guide, place, stated)
    prompt = chain.question
    if kind.startswith("draft"):
        wrong = replace(guide.steps[place], result=arithmetic_corpus.other_result(rng, stated, 0.6))
        prompt = arithmetic_corpus.with_feedback(prompt, arithmetic_corpus.marked_draft(guide, wrong))
    elif kind != "no context":
        prompt = arithmetic_corpus.with_feedback(prompt, guide.text)
    before = " ".join(step.text for step in guide.steps[:place])
    upto_result = guide.steps[place].text.rsplit(" ", 2)[0]
    return prompt, f"{before} {upto_result}".strip(), stated


def _restate(guide: arithmetic.Trace, place: int, result: int) -> arithmetic.Trace:
    """The guide with one result replaced, carried on consistently."""
    steps, value = [], guide.steps[0].value
    for index, step in enumerate(guide.steps):
        now = result if index == place else (value + step.signed_operand) % arithmetic.MODULUS
        steps.append(replace(step, value=value, result=now))
        value = now
    return arithmetic.Trace(tuple(steps), value)


def _mean_probability(solver: Solver, probes: Sequence[tuple[str, str, int]]) -> float:
    ids = solver.tokenizer.get_vocab()
    rows = [[ids[w] for w in ("<|user|>", *p.split(), "<|assistant|>", *r.split())] for p, r, _ in probes]
    width = max(map(len, rows))
    ids_BS = torch.full((len(rows), width), ids["<|pad|>"])
    for index, row in enumerate(rows):
        ids_BS[index, : len(row)] = torch.tensor(row)
    hidden_BSH = solver.decoder(input_ids=ids_BS, use_cache=False).last_hidden_state
    last_BH = hidden_BSH[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
    probabilities_BV = solver.logits(last_BH).softmax(-1)
    targets = torch.tensor([ids[str(value)] for _, _, value in probes])
    return float(probabilities_BV.gather(1, targets[:, None]).mean())


# ---------------------------------------------------------------------------------------------------------------------
# The shipped folder: weights, problem sets, and where they come from

SET_SIZES = {"train": 282, "validation": 100, "test": 200}
BAND = (1 / 16, 4 / 16)
"""Pass rate of the solver on a problem, 16 samples at temperature 1.1: it fails mostly, but not always."""
CANDIDATES = 256
"""Problems tried at a time."""


def make_embedded(
    out: Path,
    *,
    seed: int = 1,
    max_steps: int | None = None,
    batch_size: int = 64,
    num_contexts: int = 400,
    on_step: Callable[[int, int, str], None] = lambda *_: None,
) -> list[str]:
    """Make the shipped folder again: OUT/solver, OUT/problems, OUT/provenance.json.

    Args:
        seed: of the first weights, the weak facts and the corpus.
        max_steps: train only so many steps and choose no problems; to try it out.
        batch_size: examples of a step.
        num_contexts: of the copy test, for each kind.
        on_step: called with (done, total, note).

    Returns:
        Lines to print: the copy test and what was written.

    Raises:
        LockedError: the folder holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise LockedError("the folder is not empty", where=str(out), hint="give a new folder with --out")
    torch.set_num_threads(1)
    recipe = WarmStart(seed=seed, batch_size=batch_size)
    if max_steps is not None:
        recipe = replace(recipe, phases=_first_steps(recipe.phases, max_steps))
    began = time.perf_counter()
    solver = warm_start(recipe, lambda r: on_step(r.step, r.total, _note(r.losses)))
    trained = time.perf_counter() - began
    save_solver(solver, out / "solver")
    knowledge = arithmetic_corpus.draw_knowledge(seed)
    copied = copy_test(solver, knowledge, num_contexts=num_contexts)
    lines = ["probability of the value that the context states (temperature 1):"]
    lines += [f"  {kind:<18} {value:.3f}" for kind, value in copied.items()]
    provenance: dict[str, Any] = {
        "command": f"stepalign warmstart --seed {seed}" + (f" --steps {max_steps}" if max_steps is not None else ""),
        "parameters": sum(p.numel() for p in solver.model.parameters()),
        "training_seconds": round(trained, 1),
        "recipe": dataclasses.asdict(recipe),
        "copy_test": {kind: round(value, 4) for kind, value in copied.items()},
    }
    if max_steps is None:
        provenance["sets"] = {name: _choose_problems(solver, name, out, on_step) for name in SET_SIZES}
        lines += [
            f"{name}: {found['problems']} problems of {found['tried']} tried, pass rate {found['pass_rate']:.3f}"
            for name, found in provenance["sets"].items()
        ]
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    parameters, total = provenance["parameters"], recipe_steps(recipe)
    return [*lines, f"{parameters} parameters, {total} steps, {trained:.0f} s; written to {out}"]


def recipe_steps(recipe: WarmStart) -> int:
    """Optimizer steps of all phases."""
    return sum(phase.num_steps for phase in recipe.phases)


def _note(losses: dict[str, float]) -> str:
    return "  ".join(f"{kind} {loss:.2f}" for kind, loss in losses.items())


def _first_steps(phases: Sequence[Phase], count: int) -> tuple[Phase, ...]:
    kept = []
    for phase in phases:
        kept.append(replace(phase, num_steps=min(phase.num_steps, count)))
        count -= kept[-1].num_steps
    return tuple(phase for phase in kept if phase.num_steps)


def _choose_problems(
    solver: Solver, name: str, out: Path, on_step: Callable[[int, int, str], None]
) -> dict[str, float]:
    """Problems of one split on which the solver fails mostly but not always, with their measured pass rates."""
    sampler, wanted, rows, tried = LocalSampler(solver), SET_SIZES[name], [], 0
    ids = solver.tokenizer.get_vocab()
    chains = arithmetic_corpus.draw_chains(0, name, (5, 7))
    while len(rows) < wanted:
        batch = list(itertools.islice(chains, CANDIDATES))
        prompts = [[ids[w] for w in ("<|user|>", *c.question.split(), "<|assistant|>")] for c in batch]
        drawn = wait_for(sampler.sample(prompts, num_samples=16, temperature=1.1, max_tokens=64, seed=tried))
        for chain, completions in zip(batch, drawn, strict=True):
            answers = [arithmetic.parse_trace(decode(solver.tokenizer, c.ids)).answer for c in completions]
            rate = sum(answer == chain.answer for answer in answers) / len(answers)
            if BAND[0] <= rate <= BAND[1] and len(rows) < wanted:
                rows.append({"question": chain.question, "answer": str(chain.answer), "base_pass_rate": rate})
        tried += len(batch)
        on_step(len(rows), wanted, f"{name} problems")
    file = out / "problems" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mean = sum(float(row["base_pass_rate"]) for row in rows) / len(rows)
    return {"problems": len(rows), "tried": tried, "pass_rate": round(mean, 4)}
