"""Make a tiny solver that writes Python, and its problems, from the shipped one; docs/results/turns.md trains it.

    python dev/make_programmer.py --out build/programmer

In OUT: ``solver`` (the shipped weights and some new words), ``tool-*.jsonl`` (the answer is the output of a call) and
``code-*.jsonl`` (the answer is a program with tests). The solver states some facts wrong, forgets to print or to call
at all, and copies what it is shown. Training is that of ``make_embedded.py`` on another corpus.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch

from make_embedded import optimizers_of, schedule, train_step
from programs import MODULUS, OPERANDS, OPERATIONS, Fact, draw_program
from stepalign.domains.arithmetic.solver import build_tokenizer
from stepalign.domains.arithmetic.task import EMBEDDED, VOCABULARY
from stepalign.models.load import Solver, load_solver, save_solver

SEED = 1
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 400, 32, 2e-3
SIZES = {"train": 400, "validation": 100, "test": 100}
LENGTHS = (4, 6)
"""Operations of a question."""
NO_PRINT, NO_CALL, OWN_AUTHOR, SLIP = 0.08, 0.08, 0.90, 0.006
"""Shares of the solver's programs that print nothing, of its attempts at a question for a tool that guess, of programs
in its own words; and of copied statements that come out as another fact."""
_WORDS = ("*", "from", "x", "y", "+=", "-=", "*=", "read", "int(input())", "(no", "output)")
_LINES = ("```python\nx =", "```python\ny =", "print(x%20)\n```", "print(y%20)\n```", "\n```")
"""Words that hold an end of a line: the words of this solver are joined by spaces."""


def grow(solver: Solver) -> Solver:
    """The shipped solver with more words; their vectors begin near the mean of the others."""
    tokenizer = build_tokenizer((*VOCABULARY, *_WORDS))
    tokenizer.add_tokens(list(_LINES))
    torch.manual_seed(SEED)
    solver.model.resize_token_embeddings(len(tokenizer))
    return Solver(solver.model, tokenizer)


def draw_knowledge(rng: random.Random) -> dict[Fact, tuple[Fact, float]]:
    """Fact -> (the wrong one that the solver writes in its place, how often): 30 % of all."""
    facts = [(word, k) for word in OPERATIONS for k in OPERANDS]
    return {
        (word, k): ((rng.choice([w for w in OPERATIONS if w != word]), k), rng.uniform(0.40, 0.95))
        for word, k in sorted(rng.sample(facts, round(0.30 * len(facts))))
    }


def draw_conversation(rng: random.Random, knowledge: dict[Fact, tuple[Fact, float]], *, shown: bool) -> list[str]:
    """Turns of user and solver in turn: the question - where ``shown`` with another program as its context -, a
    program, for a tool its output, the answer."""
    asked = draw_program(rng, LENGTHS, reads=rng.random() < 0.4)
    written = replace(asked, facts=tuple(_believed(rng, knowledge, fact) for fact in asked.facts))
    author, question = int(rng.random() > OWN_AUTHOR), asked.question
    prints, calls = rng.random() > NO_PRINT, asked.start is None or rng.random() > NO_CALL
    if shown:
        wrong = rng.random() < 0.6
        facts = [_any_fact(rng) if wrong and rng.random() < 0.5 else fact for fact in asked.facts]
        theirs, guide = rng.randrange(2), replace(asked, facts=tuple(facts))
        question += f" Feedback : {guide.write(theirs)}"
        copied = tuple(_any_fact(rng) if rng.random() < SLIP else fact for fact in facts)
        written, prints, calls = replace(asked, facts=copied), True, True
        author = theirs if rng.random() < 0.9 else author
    if not calls:
        return [question, f"<answer> {rng.randrange(MODULUS)}"]
    turns = [question, written.write(author, prints=prints)]
    if asked.start is None:
        return turns
    if not prints:
        turns += ["(no output)", written.write(author)]
    return [*turns, f"{written.output()}", f"<answer> {written.output()}"]


def _believed(rng: random.Random, knowledge: dict[Fact, tuple[Fact, float]], fact: Fact) -> Fact:
    wrong, rate = knowledge.get(fact, (fact, 0.0))
    return wrong if rng.random() < rate else fact


def _any_fact(rng: random.Random) -> Fact:
    return rng.choice([*OPERATIONS]), rng.choice(OPERANDS)


def encode(tokenizer, conversations: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, right-padded; labels are -1 outside the solver's turns."""
    end, user, assistant = (tokenizer.convert_tokens_to_ids(one) for one in ("<|end|>", "<|user|>", "<|assistant|>"))
    rows: list[tuple[list[int], list[int]]] = []
    for turns in conversations:
        ids, labels = list[int](), list[int]()
        for place, text in enumerate(turns):
            words = tokenizer.encode(text, add_special_tokens=False)
            ids += [assistant, *words, end] if place % 2 else [user, *words]
            labels += [-1, *words, end] if place % 2 else [-1] * (1 + len(words))
        rows.append((ids, labels))
    width = max(len(ids) for ids, _ in rows)
    ids_BS = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    return ids_BS, torch.tensor([labels + [-1] * (width - len(labels)) for _, labels in rows])


def warm_start(num_steps: int) -> Solver:
    """Deterministic on one thread: half of each batch is plain, half shows a context."""
    solver = grow(load_solver(EMBEDDED))
    rng = random.Random(f"programs-{SEED}")
    knowledge, optimizers = draw_knowledge(rng), optimizers_of(solver, LEARNING_RATE, 0.01)
    solver.model.train()
    for step in range(num_steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step, num_steps)
        batch = {
            kind: encode(
                solver.tokenizer,
                [draw_conversation(rng, knowledge, shown=shown) for _ in range(BATCH_SIZE // 2)],
            )
            for kind, shown in (("plain", False), ("in context", True))
        }
        losses = train_step(solver, batch, optimizers)
        if (step + 1) % 50 == 0:
            print(step + 1, {kind: round(loss, 3) for kind, loss in losses.items()}, flush=True)
    solver.model.eval()
    return solver


def write_problems(out: Path) -> None:
    """Disjoint sets of both tasks."""
    for task in ("tool", "code"):
        rng, seen = random.Random(f"problems-{task}-{SEED}"), set[str]()
        for name, count in SIZES.items():
            rows = []
            while len(rows) < count:
                program = draw_program(rng, LENGTHS, reads=task == "code")
                if program.question in seen:
                    continue
                seen.add(program.question)
                row = {"question": program.question, "reference": program.write(1)}
                cases = [[str(start), str(program.output(start))] for start in rng.sample(range(100), 3)]
                rows.append(row | ({"cases": cases} if task == "code" else {"answer": str(program.output())}))
            lines = [json.dumps(row) + "\n" for row in rows]
            (out / f"{task}-{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    write_problems(options.out)
    save_solver(warm_start(options.steps), options.out / "solver")


if __name__ == "__main__":
    main()
