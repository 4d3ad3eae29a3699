"""From a request to what the viewer draws: the same scoring as ``stepalign signal``, for one attempt, cancellable."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stepalign.build import OWN_FORMS, make_critic, open_session
from stepalign.config import Config
from stepalign.critics import Critic
from stepalign.domains.table import has_program, load_set
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent
from stepalign.feedback import designs
from stepalign.feedback.alignment import align
from stepalign.models.prompts import opened_by
from stepalign.records import Attempt, Critique, CritiqueForm
from stepalign.rollouts.order import derive_seed
from stepalign.token_signal.analyse import Analysed, AttemptInContexts, analyse_attempts, check_positions
from stepalign.token_signal.counterfactual import resample, spike_at
from stepalign.token_signal.summary import header
from stepalign.token_signal.table import to_page
from stepalign.verbs.lab.request import LabRequest
from stepalign.verbs.lab.worker import Cancelled
from stepalign.verbs.signal.collect import collect_for_signal
from stepalign.verbs.signal.folder import another_teacher
from stepalign.verbs.signal.from_jsonl import own_prompts, to_subject
from stepalign.waiting import wait_for

NUM_TRIES = 24
"""Problems that are attempted in search of a wrong attempt to open the embedded solver's lab with."""


class Scorer:
    """A loaded solver that scores requests. Not thread-safe: one thread uses it.

    Args:
        config: model, prompts and sampling temperature; from a recipe also the critic.
        from_recipe: whether data and critic of ``config`` come from a recipe, or are mere defaults.

    Raises:
        ConfigError: the model or the recipe cannot be used.
    """

    def __init__(self, config: Config, *, from_recipe: bool, listener: Listener = silent) -> None:
        self.config = config
        self._has_truth = from_recipe and has_program(config.data, config.critic)
        self._from_recipe = from_recipe
        another_teacher(config, listener)
        self._session = open_session(config, listener)
        self._critics: dict[CritiqueForm, Critic] = {}
        self._kept: dict[Any, Any] = {}  # the scores of the last request: an edit leaves most of them as they are

    def close(self) -> None:
        for critic in self._critics.values():
            critic.close()
        self._session.close()

    @property
    def designs(self) -> list[dict[str, str]]:
        """The context designs that can be filled in from a request alone, or by asking the recipe's critic."""
        fitting = {"reference", "critic"} if self._has_critic() else {"reference"}
        return [
            {"name": name, "label": design.label}
            for name, design in designs.DESIGNS.items()
            if design.has_context and design.form not in OWN_FORMS and fitting.issuperset(design.needs)
        ]

    def _has_critic(self) -> bool:
        section = self.config.critic
        return self._has_truth if section.kind != "endpoint" else self._from_recipe and bool(section.model)

    def score(self, request: LabRequest, cancelled: threading.Event) -> dict[str, Any]:
        """One attempt under every context, as docs/formats.md describes signal.json.

        Raises:
            ConfigError: nothing to score, or more tokens than the model has positions for.
            Cancelled: ``cancelled`` was set meanwhile.
        """
        analysed = self._analyse(request, cancelled)
        subject, solver = analysed.subject, self._session.solver
        page, prompts = to_page(analysed.scored), subject.prompts or self._session.prompts
        teachers = {
            name: prompts.self_teacher(subject.attempt.problem, shown.text, completion_length=len(subject.ids))
            for name, shown in subject.contexts.items()
        }
        for context in page["contexts"]:  # what the self-teacher reads, control tokens included
            teacher = teachers[context["name"]]
            prompt = str(solver.tokenizer.decode(list(teacher.ids)))
            context |= {"prompt": prompt, "dropped_tokens": teacher.dropped_tokens}
        return {
            **header(self.config.model.path, self._temperature(request)),
            "contexts": [{"name": name, "label": name} for name in subject.contexts],
            "rollouts": [page],
        }

    def _analyse(self, request: LabRequest, cancelled: threading.Event) -> Analysed:
        """The attempt of a request, scored. Raises as ``score`` does."""
        subject = self._subject(request)
        if not subject.contexts:
            raise ConfigError("there is no feedback yet", hint="write some, or fill it in from a design")
        solver, prompts = self._session.solver, subject.prompts or self._session.prompts
        check_positions(solver, prompts, subject, "the attempt")
        options = {"temperature": self._temperature(request), "top_k": max(1, self.config.signal.top_k)}
        with _cancellable(cancelled):
            (analysed,) = analyse_attempts(solver, prompts, [subject], **options, kept=self._kept)
        return analysed

    def _temperature(self, request: LabRequest) -> float:
        return request.temperature or self.config.sampling.temperature

    def what_if(self, request: LabRequest, token: int, count: int, cancelled: threading.Event) -> dict[str, Any]:
        """Success of ``count`` continuations from just before a token, as written and with the self-teacher's token.

        Returns:
            By context, as ``counterfactual`` of signal.json.

        Raises:
            ConfigError: no expected answer, no such token, or no room for a continuation; and as ``score`` does.
            Cancelled: as ``score``.
        """
        if not request.answer.strip():
            raise ConfigError("whether a continuation is right is not known", hint="fill in the expected answer")
        analysed = self._analyse(request, cancelled)
        subject, session = analysed.subject, self._session
        if token >= len(subject.ids):
            raise ConfigError(f"the attempt has {len(subject.ids)} tokens, and no token {token}")
        prompt = (subject.prompts or session.prompts).student(subject.attempt.problem)
        section, room = self.config.sampling, (session.solver.context_length or sys.maxsize) - len(prompt)
        spikes = [
            spike_at(token, subject.attempt, name, prompt, subject.ids, scores.log_ratio, scores.teacher.top_ids[:, 0])
            for name, scores in analysed.scores.contexts.items()
        ]
        with _cancellable(cancelled):
            rows = resample(
                session.maker,
                spikes,
                num_samples=count,
                temperature=self._temperature(request),
                max_tokens=min(max(section.max_completion_length, len(subject.ids)), room),
                seed=derive_seed(self.config.training.seed, "what if"),
                end_ids=session.solver.end_ids,
            )
        return {row["context"]: {"rows": [row]} for row in rows}

    def fill(self, design: str, request: LabRequest) -> str:
        """The text that a context design shows for a request.

        Raises:
            ConfigError: an unknown design, or nothing to show, with the reason.
        """
        entry = designs.find_design(design)
        attempt = self._subject(request).attempt
        critiques = {attempt.rollout_id: self._ask(design, attempt)} if entry.needs_critic else {}
        context = designs.make_contexts(design, designs.make_group([attempt], critiques))[0]
        if context.text is None:
            raise ConfigError(f"{entry.label}: {context.masked or 'nothing to show'}")
        return context.text

    def opening(self) -> LabRequest | None:
        """The embedded solver's own example: a wrong attempt, what its critic says, and the reference."""
        if not self._has_truth:
            return None
        problems = load_set(self.config.data, "train").problems[:NUM_TRIES]
        with TemporaryDirectory() as folder:
            for rollout, critique in collect_for_signal(self._session, problems, Path(folder), seed=0):
                if critique is not None and critique.status == "ok" and critique.case == "D":
                    problem, reference = rollout.problem, rollout.problem.reference or ""
                    return LabRequest(
                        question=problem.question,
                        completion=rollout.text,
                        contexts={"step_aligned": critique.text, "reference": reference},
                        answer=problem.answer,
                        reference=reference,
                    )
        return None

    def _subject(self, request: LabRequest) -> AttemptInContexts:
        """The attempt of a request, graded where the answer is known, under the contexts that have a text."""
        if not request.completion:
            raise ConfigError("there is no attempt yet", hint="paste the text that the solver wrote")
        row = request.model_dump()
        contexts = {name: text for name, text in request.contexts.items() if text.strip()}
        prompts = own_prompts(row, self.config, self._session.solver, "request")
        subject = to_subject(row, "lab", contexts, self._session.solver, "request", prompts)
        attempt = subject.attempt
        if request.answer and request.verdict == "undecided":
            prompt = (prompts or self._session.prompts).student(attempt.problem)
            written = opened_by(self._session.solver.tokenizer, prompt) + attempt.text
            attempt = replace(attempt, grade=self._session.grader.grade(written, request.answer))
        return replace(subject, attempt=attempt, critique=_correction(attempt, contexts))

    def _ask(self, design: str, attempt: Attempt) -> Critique:
        if not self._has_critic():
            raise ConfigError("the recipe names no critic", hint="write the feedback by hand")
        form = designs.find_design(design).form
        if form not in self._critics:
            made = make_critic(self.config, None, [design], strict=False)
            assert made is not None
            self._critics[form] = made
        return wait_for(self._critics[form].critique(attempt))


def _correction(attempt: Attempt, contexts: Mapping[str, str]) -> Critique | None:
    """The first feedback that follows the attempt and corrects it, as a critique: it says which step is wrong."""
    for text in contexts.values():
        found = align(attempt, text)
        if found.copied and found.first_error is not None and not found.full_solution:
            return Critique(rollout_id=attempt.rollout_id, critic="given", status="ok", text=text)
    return None


@contextmanager
def _cancellable(cancelled: threading.Event) -> Iterator[None]:
    """Every module of a forward pass first looks whether its result is still wanted."""

    def look(*_: Any) -> None:
        if cancelled.is_set():
            raise Cancelled

    look()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
