"""From a sheet to what the viewer draws: the same scoring as ``stepalign signal``, for one attempt, cancellable."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stepalign.build import collect_for_signal, make_critic, make_prompts, open_session
from stepalign.config import Config, changed
from stepalign.critics import Critic
from stepalign.domains.math.grade import Grade
from stepalign.domains.table import find_domain, load_set
from stepalign.errors import ConfigError
from stepalign.feedback import designs
from stepalign.feedback.alignment import align
from stepalign.models.prompts import PromptBuilder, decode, encode_with_spans
from stepalign.records import Attempt, Critique, Problem
from stepalign.signal.analyse import AttemptInContexts, Shown, analyse_attempts
from stepalign.signal.marks import Labels
from stepalign.signal.summary import header
from stepalign.signal.table import to_page
from stepalign.verbs.lab.queue import Cancelled
from stepalign.verbs.lab.sheet import Sheet
from stepalign.waiting import wait_for

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
        self._has_truth = from_recipe and find_domain(config.data).critic is not None
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
        return self._has_truth if section.kind == "programmatic" else self._from_recipe and bool(section.model)

    def score(self, sheet: Sheet, cancelled: threading.Event) -> dict[str, Any]:
        """One attempt under every context, as docs/formats.md describes signal.json.

        Raises:
            ConfigError: nothing to score, or more tokens than the model has positions for.
            Cancelled: ``cancelled`` was set meanwhile.
        """
        attempt, ids, spans = self._read(sheet)
        prompts = self._prompts(sheet)
        shown = {name: Shown(text=text) for name, text in sheet.contexts.items() if text.strip()}
        if not shown:
            raise ConfigError("there is no feedback yet", hint="write some, or fill it in from a design")
        config = self.config if sheet.temperature is None else _at(self.config, sheet.temperature)
        subject = AttemptInContexts(
            attempt=attempt,
            ids=ids,
            contexts=shown,
            critique=_critique(sheet, attempt),
            labels=Labels(wrong_step=sheet.wrong_step, wrong_text=sheet.wrong_text),
            case=sheet.case,
            spans=spans,
        )
        self._check_length(prompts, subject)
        with _cancellable(cancelled):
            (analysed,) = analyse_attempts(
                self._session.solver,
                prompts,
                [subject],
                temperature=config.sampling.temperature,
                top_k=config.signal.top_k,
            )
        page = to_page(analysed.scored)
        for context in page["contexts"]:
            context["prompt"] = self._rendered(prompts, attempt.problem, context["text"])
            context["dropped_tokens"] = analysed.scored.tables[context["name"]].dropped_tokens
        return {
            **header(config.model.path, config.sampling.temperature),
            "contexts": [{"name": name, "label": name} for name in shown],
            "rollouts": [page],
        }

    def fill(self, design: str, sheet: Sheet) -> str:
        """The text that a context design shows for a sheet.

        Raises:
            ConfigError: an unknown design, or nothing to show, with the reason.
        """
        entry = designs.find_design(design)
        attempt, _, _ = self._read(sheet)
        critiques = {attempt.rollout_id: self._ask(design, attempt)} if entry.needs_critic else {}
        group = designs.make_group([attempt], critiques)
        context = designs.make_contexts(design, group)[0]
        if context.text is None:
            raise ConfigError(f"{entry.label}: {context.masked or 'nothing to show'}")
        return context.text

    def opening(self) -> Sheet | None:
        """The embedded solver's own example: a wrong attempt, what its critic says, and the reference."""
        if not self._has_truth:
            return None
        problems = load_set(self.config.data, "train").problems[:NUM_TRIES]
        found = self._wrong_attempt(problems)
        if found is None:
            return None
        attempt, critique = found
        return Sheet(
            question=attempt.problem.question,
            completion=attempt.text,
            contexts={"step_aligned": critique.text, "reference": attempt.problem.reference or ""},
            answer=attempt.problem.answer,
            reference=attempt.problem.reference or "",
        )

    def _wrong_attempt(self, problems: Sequence[Problem]) -> tuple[Attempt, Critique] | None:
        with TemporaryDirectory() as folder:
            for rollout, critique in collect_for_signal(self._session, problems, Path(folder), seed=0):
                if critique is not None and critique.status == "ok" and critique.case == "D":
                    return rollout.attempt, critique
        return None

    def _read(self, sheet: Sheet) -> tuple[Attempt, list[int], list[tuple[int, int]] | None]:
        """The attempt, its token ids, and the characters behind each where the text is more than its tokens spell."""
        tokenizer = self._session.solver.tokenizer
        ids, spans = encode_with_spans(tokenizer, sheet.completion)
        if not ids:
            raise ConfigError("there is no attempt yet", hint="paste the text that the solver wrote")
        text = sheet.completion if spans else decode(tokenizer, ids)
        problem = Problem(
            problem_id="lab", question=sheet.question, answer=sheet.answer, reference=sheet.reference or None
        )
        grade = Grade.of(sheet.verdict)
        if sheet.answer and sheet.verdict == "undecided":
            grade = self._session.grader.grade(text, sheet.answer)
        return Attempt(rollout_id="lab", problem=problem, text=text, grade=grade), list(ids), spans

    def _prompts(self, sheet: Sheet) -> PromptBuilder:
        """The recipe's prompts, or those that the sheet brings."""
        if not sheet.own_prompts:
            return self._session.prompts
        return make_prompts(changed(self.config, sheet.own_prompts, "sheet"), self._session.solver)

    def _rendered(self, prompts: PromptBuilder, problem: Problem, text: str) -> str:
        """What the self-teacher reads, control tokens included."""
        return str(self._session.solver.tokenizer.decode(list(prompts.self_teacher(problem, text).ids)))

    def _check_length(self, prompts: PromptBuilder, subject: AttemptInContexts) -> None:
        """Raises ConfigError where a prompt and the attempt do not fit into the model's positions."""
        room = getattr(self._session.solver.model.config, "max_position_embeddings", None)
        problem = subject.attempt.problem
        teachers = [prompts.self_teacher(problem, shown.text).ids for shown in subject.contexts.values()]
        needed = max(len(ids) for ids in (prompts.student(problem), *teachers)) + len(subject.ids)
        if room is not None and needed > room:
            raise ConfigError(
                f"{needed} tokens of prompt and attempt, and the model has {room} positions",
                hint="shorten the feedback or the attempt",
            )

    def _ask(self, design: str, attempt: Attempt) -> Critique:
        if not self._has_critic():
            raise ConfigError("the recipe names no critic", hint="write the feedback by hand")
        if self._critic is None:
            self._critic = make_critic(self.config, None, [design])
        assert self._critic is not None
        return wait_for(self._critic.critique(attempt))


def _at(config: Config, temperature: float) -> Config:
    return changed(config, {"sampling.temperature": temperature}, "sheet")


def _critique(sheet: Sheet, attempt: Attempt) -> Critique | None:
    """The first feedback that follows the attempt and corrects it, as a critique: it says which step is wrong."""
    for text in sheet.contexts.values():
        found = align(attempt.text, text) if text.strip() else None
        if found is not None and found.copied and found.first_error is not None and not found.full_solution:
            return Critique(rollout_id=attempt.rollout_id, critic="given", status="ok", text=text)
    return None


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
