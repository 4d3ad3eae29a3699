"""The signal of one attempt for a notebook: numbers as arrays, the viewer as the output of a cell."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepalign.build import make_prompts
from stepalign.config import Settings, parse_settings
from stepalign.errors import ConfigError
from stepalign.feedback import findings
from stepalign.feedback.alignment import Alignment
from stepalign.models.load import Solver
from stepalign.models.places import name_of
from stepalign.records import Attempt, Critique, Verdict
from stepalign.storage.files import finite
from stepalign.token_signal.analyse import analyse_attempts
from stepalign.token_signal.summary import header, summarise
from stepalign.token_signal.table import MarkedStep, ScoredCompletion, TokenTable, align_feedback
from stepalign.verbs.configs import config_for_file
from stepalign.verbs.signal.from_jsonl import to_subject
from stepalign.verbs.signal.rows import check_row

VIEWER_HEIGHT = 720
"""Pixels of the viewer in a notebook."""


class TopToken(NamedTuple):
    """A token that a context makes much likelier or unlikelier."""

    context: str
    position: int
    token: str
    step: str
    """Label of its step, "" before the first."""
    log_ratio: float
    """A_t, nats."""


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """The effect of contexts on one attempt, token by token. A notebook shows it as the token viewer."""

    scored: ScoredCompletion
    verdict: Verdict
    data: Mapping[str, Any]
    """The content of signal.json (docs/formats.md)."""

    @property
    def contexts(self) -> list[str]:
        """Their names."""
        return list(self.scored.tables)

    @property
    def steps(self) -> list[MarkedStep]:
        """The steps of the attempt with what is known of each: right, wrong (the first), after_error, or unknown."""
        return list(self.scored.steps)

    def table(self, context: str) -> TokenTable:
        """The columns of one context. Raises ConfigError where there is no such context."""
        if context not in self.scored.tables:
            raise ConfigError(f"there is no context {context!r}", hint=f"choose from {', '.join(self.contexts)}")
        return self.scored.tables[context]

    def top(self, count: int = 20, context: str = "") -> list[TopToken]:
        """The tokens with the largest \\|A_t\\|, strongest first; of one context where one is named."""
        tables = [self.table(context)] if context else list(self.scored.tables.values())
        labels = [step.label for step in self.scored.steps] + [""]  # step -1 is the text before the first
        found = [
            TopToken(table.context, at, table.tokens[at], labels[table.step[at]], float(table.log_ratio[at]))
            for table in tables
            for at in np.argsort(-np.abs(table.log_ratio), kind="stable")[:count].tolist()
        ]
        return sorted(found, key=lambda token: -abs(token.log_ratio))[:count]

    def alignment(self, context: str) -> Alignment | None:
        """The fate of the attempt's steps in a context; None where it is not written in steps."""
        answer = self.scored.expected_answer
        return align_feedback(self.scored.text, self.table(context).text, expected_answer=answer)

    @property
    def findings(self) -> dict[str, dict[str, str]]:
        """Context -> finding -> where or what, for every context that is a critique: one written in steps."""
        aligned = {name: self.alignment(name) for name in self.contexts}
        return {name: self._findings(name, alignment) for name, alignment in aligned.items() if alignment is not None}

    def _findings(self, context: str, alignment: Alignment) -> dict[str, str]:
        text = self.table(context).text
        critique = Critique(rollout_id=self.scored.rollout_id, critic="given", status="ok", text=text)
        return findings.find(
            findings.Reading(critique=critique, verdict=self.verdict, attempt=self.scored.text, alignment=alignment)
        )

    def to_html(self, path: str | Path) -> Path:
        """Write the page that ``stepalign signal`` writes: viewer and numbers in one file that needs no network."""
        from stepalign.report.page import write_token_page

        return write_token_page(self.data, Path(path))

    def _repr_html_(self) -> str:
        """The viewer in a frame of its own: its styles and scripts cannot meet those of the notebook."""
        from stepalign.report.page import frame_html

        page = html.escape(frame_html(self.data))
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="token signal" '
            f'style="width:100%;height:{VIEWER_HEIGHT}px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        plural = "s" if len(self.contexts) > 1 else ""
        lines = [f"Signal of {len(self.scored.tokens)} tokens under {len(self.contexts)} context{plural}, A_t in nats"]
        for name, table in self.scored.tables.items():
            strongest = self.top(1, name)[0]
            where = f"step {strongest.step}, " if strongest.step else ""
            lines.append(
                f"  {name}: sum {np.nansum(table.log_ratio):+.3f}, "
                f"strongest {strongest.log_ratio:+.3f} at {strongest.token!r} ({where}token {strongest.position})"
            )
        return "\n".join(lines)

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        """The tokens in colour, as ``stepalign show`` prints them."""
        from stepalign.report.terminal import rollout_parts

        return rollout_parts(self.data, console=console)


def signal(
    solver: Solver,
    question: str,
    completion: str | Attempt,
    contexts: Mapping[str, str],
    *,
    answer: str = "",
    reference: str | None = None,
    wrong_step: str | None = None,
    wrong_text: str | None = None,
    recipe: str = "",
    settings: Settings = (),
) -> Signal:
    """Score an attempt with and without each context; the numbers are those of ``stepalign signal`` on the same text.

    Args:
        completion: the text of an attempt, or an ``Attempt``, whose verdict then counts for the findings.
        contexts: name -> what the self-teacher is shown beside the question.
        answer: the expected answer, where it is known.
        reference: a reference solution, shown on the page.
        wrong_step: label of the first wrong step ("3", "answer"); "" says that every step is right.
        wrong_text: the wrong passage, quoted.
        recipe: brings prompts and temperature; without one a question is asked as it is, unless the solver comes
            from a run or from the package.
        settings: keys of the recipe and their values, such as {"signal.top_k": 10}, or ``key.path=value`` words.

    Raises:
        ConfigError: nothing to score, a label that does not fit the attempt, or a recipe that cannot be used.
    """
    if not isinstance(solver, Solver):
        hint = "signal(load_solver(PATH), question, completion, contexts)"
        raise ConfigError(f"solver must be a Solver, not {type(solver).__name__}", where="signal()", hint=hint)
    if not isinstance(contexts, Mapping):
        hint = 'such as contexts={"critique": "..."}'
        raise ConfigError("contexts must be names with their texts", where="signal()", hint=hint)
    name = name_of(solver.model.name_or_path or "")
    config, _ = config_for_file(name, recipe, parse_settings(settings))
    row: dict[str, Any] = {
        "question": question,
        "completion": completion,
        "contexts": dict(contexts),
        "answer": answer,
        "reference": reference,
        "wrong_step": wrong_step,
        "wrong_text": wrong_text,
    }
    if isinstance(completion, Attempt):
        problem = completion.problem
        row |= {"completion": completion.text, "verdict": completion.verdict}
        row |= {"answer": answer or problem.answer, "reference": reference or problem.reference}
    row = check_row(row, "signal()")
    subject = to_subject(row, "attempt", contexts, solver, "signal()")
    if not subject.contexts:
        raise ConfigError("no context has a text", where="contexts", hint='such as contexts={"critique": "..."}')
    temperature = config.sampling.temperature
    (analysed,) = analyse_attempts(
        solver, make_prompts(config, solver), [subject], temperature=temperature, top_k=config.signal.top_k
    )
    names = {context: context for context in subject.contexts}
    data = summarise(lambda: [analysed.scored], header(name, temperature), names, num_shown=1)
    return Signal(analysed.scored, subject.attempt.verdict, finite(data))
