"""From a sheet to what the viewer draws: the same scoring as ``stepalign signal``, for one attempt, cancellable."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stepalign.config import Config
from stepalign.errors import ConfigError
from stepalign.feedback import designs
from stepalign.feedback.alignment import align
from stepalign.feedback.critics import Critic, CritiqueRequest
from stepalign.feedback.steps import split_steps
from stepalign.lab.queue import Cancelled
from stepalign.lab.sheet import Sheet
from stepalign.records import Completion, Critique, Problem, Rollout, StepStatus
from stepalign.signal.analyse import DEFINITION
from stepalign.signal.log_ratio import Shown, alternatives, score_signals
from stepalign.solver.model import EMBEDDED
from stepalign.solver.tokens import decode_with_spans
from stepalign.training.problem_sets import load_set
from stepalign.training.session import collect_for_signal, make_critic, open_session

NUM_TRIES = 24
"""Problems that are attempted in search of a wrong attempt to open the embedded solver's lab with."""


class Bench:
    """A loaded solver that scores sheets. Not thread-safe: one thread uses it.

    Args:
        config: model, prompts and sampling temperature; from a recipe also the critic.
        from_recipe: whether somebody chose the data and the critic of ``config``, or they are mere defaults.

    Raises:
        ConfigError: the model or the recipe cannot be used.
    """

    def __init__(self, config: Config, *, from_recipe: bool) -> None:
        self.config = config
        self._embedded = from_recipe and config.data.train == EMBEDDED
        self._from_recipe = from_recipe
        self._session = open_session(config)
        self._critic: Critic | None = None

    def close(self) -> None:
        if self._critic is not None:
            self._critic.close()
        self._session.close()

    @property
    def designs(self) -> list[dict[str, str]]:
        """The context designs that can be filled in from a sheet alone, or by asking the recipe's critic."""
        fitting = {"reference", "critic"} if self._has_critic() else {"reference"}
        return [
            {"name": name, "label": design.label}
            for name, design in designs.DESIGNS.items()
            if name != "none" and fitting.issuperset(design.needs)
        ]

    def _has_critic(self) -> bool:
        section = self.config.critic
        return self._embedded if section.kind == "programmatic" else self._from_recipe and bool(section.model)

    def score(self, sheet: Sheet, cancelled: threading.Event) -> dict[str, Any]:
        """One attempt under every context, as docs/formats.md describes signal.json.

        Raises:
            ConfigError: nothing to score, or more tokens than the model has positions for.
            Cancelled: ``cancelled`` was set meanwhile.
        """
        solver, prompts = self._session.solver, self._session.prompts
        problem, rollout = self._read(sheet)
        temperature = sheet.temperature or self.config.sampling.temperature
        shown = [
            Shown(problem=problem, rollout=rollout, design=name, text=text) for name, text in sheet.contexts.items()
        ]
        self._check_length(problem, rollout, sheet)
        with _cancellable(cancelled):
            signals = {
                signal.design: signal for _, signal in score_signals(solver, prompts, shown, temperature=temperature)
            }
            ids, top_k = rollout.completion.ids, self.config.signal.top_k
            student_top = alternatives(solver, prompts.student(problem), ids, temperature=temperature, k=top_k)
            pages = []
            for item in shown:
                teacher = prompts.self_teacher(problem, item.text).ids
                signal = signals[item.design]
                pages.append({
                    "name": item.design, "text": item.text, "prompt": solver.tokenizer.decode(list(teacher)),
                    "log_ratio": signal.log_ratio, "student_log_prob": signal.student_log_probs,
                    "teacher_log_prob": signal.teacher_log_probs, "forward_kl": signal.forward_kl,
                    "student_entropy": signal.student_entropy, "teacher_entropy": signal.teacher_entropy,
                    "top_student": student_top,
                    "top_teacher": alternatives(solver, teacher, ids, temperature=temperature, k=top_k),
                })  # fmt: skip
        return {
            "format": 1,
            "model": self.config.model.path,
            "temperature": temperature,
            "unit": "nats",
            "definition": DEFINITION,
            "contexts": [{"name": name, "label": name} for name in sheet.contexts],
            "rollouts": [self._page(problem, rollout, sheet) | {"contexts": [_listed(page) for page in pages]}],
        }

    def fill(self, design: str, sheet: Sheet) -> str:
        """The text that a context design shows for a sheet.

        Raises:
            ConfigError: an unknown design, or nothing to show, with the reason.
        """
        entry = designs.find_design(design)
        problem, rollout = self._read(sheet)
        critique = self._ask(design, problem, rollout) if entry.needs_critic else None
        group = designs.Group(problem=problem, rollouts=[rollout], critiques=[critique])
        context = designs.make_contexts(design, group)[0]
        if context.text is None:
            raise ConfigError(f"{entry.label}: {context.masked or 'nothing to show'}")
        return context.text

    def opening(self) -> Sheet | None:
        """The embedded solver's own example: a wrong attempt, what its critic says, and the reference."""
        if not self._embedded:
            return None
        problems = load_set(self.config, "train").problems[:NUM_TRIES]
        found = self._wrong_attempt(problems)
        if found is None:
            return None
        problem, rollout, critique = found
        return Sheet(
            question=problem.question,
            completion=rollout.text,
            contexts={"step_aligned": critique.text, "reference": problem.reference or ""},
            answer=problem.answer,
            reference=problem.reference or "",
        )

    def _wrong_attempt(self, problems: Sequence[Problem]) -> tuple[Problem, Rollout, Critique] | None:
        with TemporaryDirectory() as folder:
            for problem, rollout, critique in collect_for_signal(self._session, problems, Path(folder), seed=0):
                if critique is not None and critique.status == "ok" and critique.case == "D":
                    return problem, rollout, critique
        return None

    def _read(self, sheet: Sheet) -> tuple[Problem, Rollout]:
        tokenizer = self._session.solver.tokenizer
        ids = tokenizer.encode(sheet.completion, add_special_tokens=False, split_special_tokens=True)
        if not ids:
            raise ConfigError("there is no attempt yet", hint="paste the text that the solver wrote")
        completion = Completion(
            ids=tuple(ids), log_probs=(float("nan"),) * len(ids), finish_reason="stop", policy_version=0
        )
        problem = Problem(
            problem_id="lab", question=sheet.question, answer=sheet.answer, reference=sheet.reference or None
        )
        _, answer, verdict = self._session.grade(problem, completion) if sheet.answer else ("", None, "undecided")
        rollout = Rollout(
            rollout_id="lab", problem_id="lab", step=0, group_index=0, completion=completion, text=sheet.completion,
            answer=answer, verdict=verdict, reward={"correct": 1.0, "incorrect": 0.0}.get(verdict, float("nan")),
        )  # fmt: skip
        return problem, rollout

    def _check_length(self, problem: Problem, rollout: Rollout, sheet: Sheet) -> None:
        """Raises ConfigError where a prompt and the attempt do not fit into the model's positions."""
        prompts, room = (
            self._session.prompts,
            getattr(self._session.solver.model.config, "max_position_embeddings", None),
        )
        longest = max(len(prompts.self_teacher(problem, text).ids) for text in sheet.contexts.values())
        needed = max(longest, len(prompts.student(problem))) + len(rollout.completion.ids)
        if room is not None and needed > room:
            raise ConfigError(
                f"{needed} tokens of prompt and attempt, and the model has {room} positions",
                hint="shorten the feedback or the attempt",
            )

    def _ask(self, design: str, problem: Problem, rollout: Rollout) -> Critique:
        if not self._has_critic():
            raise ConfigError("the recipe names no critic", hint="write the feedback by hand")
        if self._critic is None:
            self._critic = make_critic(self.config, None, [design])
        assert self._critic is not None
        return self._critic.submit(CritiqueRequest(problem=problem, rollout=rollout)).result()

    def _page(self, problem: Problem, rollout: Rollout, sheet: Sheet) -> dict[str, Any]:
        tokenizer, ids = self._session.solver.tokenizer, rollout.completion.ids
        text, spans = decode_with_spans(tokenizer, ids)
        steps = split_steps(text)
        statuses = _statuses(text, sheet, len(steps))
        return {
            "rollout_id": "lab",
            "case": "",
            "verdict": rollout.verdict if sheet.answer else "",
            "question": problem.question,
            "expected_answer": problem.answer or None,
            "reference": problem.reference,
            "text": text,
            "tokens": [
                {
                    "text": text[a:b] or str(tokenizer.convert_ids_to_tokens(i)),
                    "start": a,
                    "end": b,
                    "id": i,
                    "special": a == b,
                }
                for i, (a, b) in zip(ids, spans, strict=True)
            ],
            "steps": [
                {"label": step.label, "start": step.start, "end": step.end, "status": status}
                for step, status in zip(steps, statuses, strict=True)
            ],
        }


def _listed(page: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in page.items()}


def _statuses(attempt: str, sheet: Sheet, num_steps: int) -> list[StepStatus]:
    """What the first feedback that corrects a step says of all of them."""
    for text in sheet.contexts.values():
        found = align(attempt, text) if text.strip() else None
        if found is None or found.full_solution or found.first_error is None:
            continue
        start = found.solver_steps[found.first_error].start
        place = next((i for i, step in enumerate(split_steps(attempt)) if step.start == start), None)
        if place is not None and found.copied:
            return [_status(at, place) for at in range(num_steps)]
    return ["unknown"] * num_steps


def _status(step: int, first_wrong: int) -> StepStatus:
    if step < first_wrong:
        return "right"
    return "wrong" if step == first_wrong else "after_error"


@contextmanager
def _cancellable(cancelled: threading.Event) -> Iterator[None]:
    """Every module of a forward pass first looks whether anybody still waits."""

    def look(*_: Any) -> None:
        if cancelled.is_set():
            raise Cancelled

    look()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
