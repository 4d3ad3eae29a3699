"""One step of training on feedback, whole, in one file: sample, grade, critique, context, two passes, loss, step.

    python examples/one_step.py

The solver is the embedded one (365 thousand parameters, arithmetic on a clock of 20 hours), its critic a program. Both
could be a model from the Hub and a served critic: nothing below asks which. ``stepalign train`` does the same with
packed rows, without a tensor of logits, with checkpoints; a test holds its loss against the one computed here.

Shapes: B completions, S tokens of prompt and completion, T tokens of a completion, V vocabulary.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import torch

import stepalign as sa

PROBLEMS, GROUP, MAX_TOKENS = 8, 4, 64
LEARNING_RATE = 1e-3


@dataclass
class Example:
    """One completion, and the two prompts that it is scored behind."""

    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    completion: tuple[int, ...]


def sample(solver: sa.Solver, prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
    """GROUP completions of a prompt at temperature 1: token ids, the end-of-text id included."""
    prompt_BS = torch.tensor([prompt] * GROUP)
    model: Any = solver.model  # any causal model of transformers
    drawn_BS = model.generate(
        prompt_BS,
        attention_mask=torch.ones_like(prompt_BS),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=MAX_TOKENS,
    )
    end = solver.tokenizer.eos_token_id
    completions = []
    for ids in drawn_BS[:, len(prompt) :].tolist():
        completions.append(tuple(ids[: ids.index(end) + 1] if end in ids else ids))
    return completions


async def make_examples(solver: sa.Solver) -> list[Example]:
    """From problems to examples: the part of a step that needs no gradient."""
    config = sa.load_config("arithmetic")  # the shipped recipe: where problems are, how a prompt is worded
    domain, design = sa.DOMAINS["arithmetic"], sa.DESIGNS["step_aligned"]
    problems = domain.load(config.data.train, config.data, "train", PROBLEMS).problems
    prompts = sa.make_prompts(config, solver)
    assert domain.critic is not None  # a program that knows the truth about this task
    critic = domain.critic(config.critic, design.form, 0)
    examples = []
    for problem in problems:
        # 1. The student attempts the problem.
        student_prompt = prompts.student(problem)
        completions = sample(solver, student_prompt)

        # 2. A grader scores each attempt, and the frozen critic writes feedback on it.
        attempts = []
        for index, ids in enumerate(completions):
            text = str(solver.tokenizer.decode(list(ids), skip_special_tokens=True))
            grade = sa.grade(text, problem.answer)
            attempts.append(sa.Attempt(rollout_id=f"{index}", problem=problem, text=text, grade=grade))
        critiques = [await critic.critique(attempt) for attempt in attempts]

        # 3. The context design decides what the self-teacher is shown.
        group = sa.Group(problem=problem, attempts=attempts, critiques=critiques)
        for index, completion in enumerate(completions):
            try:
                context = design.show(group, index) or ""
            except sa.NothingToShow:
                continue  # masked: this completion trains nothing
            teacher_prompt = prompts.self_teacher(problem, context, introduction=design.introduction)
            examples.append(Example(student_prompt, teacher_prompt.ids, completion))
    return examples


def log_probs(solver: sa.Solver, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """[T, V], the distribution over the next token in front of each token of the completion, nats."""
    logits_1SV = solver.model(torch.tensor([[*prompt, *completion]])).logits
    return logits_1SV[0, len(prompt) - 1 : -1].log_softmax(-1)


def loss(solver: sa.Solver, examples: list[Example]) -> torch.Tensor:
    """Forward KL(self-teacher || student): mean over all tokens of all completions, nats.

    The self-teacher is the same solver. It reads the feedback, then the *same* completion, and has no gradient.
    """
    total, num_tokens = torch.zeros(()), 0
    for example in examples:
        with torch.no_grad():
            teacher_TV = log_probs(solver, example.teacher_prompt, example.completion)
        student_TV = log_probs(solver, example.student_prompt, example.completion)
        total = total + sa.forward_kl(teacher_TV, student_TV).sum()
        num_tokens += len(example.completion)
    return total / num_tokens


def main() -> None:
    torch.manual_seed(0)
    solver = sa.load_solver("embedded:arithmetic")
    examples = asyncio.run(make_examples(solver))

    # 4. Two scoring passes, the loss, one step of the optimizer.
    optimizer = torch.optim.AdamW(solver.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    before = loss(solver, examples)
    before.backward()
    torch.nn.utils.clip_grad_norm_(solver.model.parameters(), 1.0)
    optimizer.step()

    print(f"{len(examples)} completions, {sum(len(example.completion) for example in examples)} tokens")
    print(f"loss before the step: {before.item():.4f} nats per token")
    with torch.no_grad():
        print(f"loss after the step:  {loss(solver, examples).item():.4f} nats per token")


if __name__ == "__main__":
    main()
