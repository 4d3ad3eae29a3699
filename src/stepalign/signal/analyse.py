"""From stored rollouts and critiques to signal.json: tokens, steps, contexts, localisation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from stepalign.feedback import designs
from stepalign.feedback.steps import split_steps
from stepalign.records import Critique, Problem, Rollout, Step, TokenSignal
from stepalign.signal.localisation import Truth, localise
from stepalign.signal.log_ratio import Shown, alternatives, score_signals, teacher_ids
from stepalign.solver.model import Solver
from stepalign.solver.tokens import PromptBuilder, decode_with_spans, tokens_inside

DEFINITION = "A_t = log p(y_t | question, context, y_<t) - log p(y_t | question, y_<t)"
CASES = {"A": "correct", "B": "correct", "C": "incomplete", "D": "one_wrong_step", "F": "wrong_approach"}

WrongResult = Callable[[Problem, Rollout], tuple[int, int] | None]
"""Where the truth is known: (position of the token with the first wrong result, id of the right one)."""


def analyse(
    solver: Solver,
    prompts: PromptBuilder,
    rollouts: Sequence[tuple[Problem, Rollout, Critique | None]],
    contexts: Sequence[str],
    *,
    temperature: float,
    num_shown: int,
    top_k: int,
    model_name: str,
    wrong_result: WrongResult | None = None,
    more_critiques: Sequence[Critique] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score rollouts under every context; see docs/formats.md for what comes out.

    Rollouts that some context has nothing to say about are left out of that context and counted in ``num_rollouts``.
    ``more_critiques`` are those in further forms, for designs that ask their critic for something else than the rest.
    """
    shown = _shown(rollouts, more_critiques, contexts)
    signals: dict[tuple[str, str], TokenSignal] = {}
    items = {(item.rollout.rollout_id, item.design): item for item in shown}
    for done, (_, signal) in enumerate(score_signals(solver, prompts, shown, temperature=temperature), 1):
        signals[signal.rollout_id, signal.design] = signal
        if on_progress is not None:
            on_progress(done, len(shown))

    traces = {r.rollout_id: _Trace(solver, p, r, c, wrong_result) for p, r, c in rollouts}
    localisation = []
    for design in contexts:
        ids = [r.rollout_id for _, r, _ in rollouts if (r.rollout_id, design) in signals and traces[r.rollout_id].truth]
        truths = [truth for i in ids if (truth := traces[i].truth) is not None]
        localisation.append({"context": design, **localise([signals[i, design] for i in ids], truths)})

    pages = []
    for problem, rollout, critique in _choose(rollouts, num_shown):
        trace = traces[rollout.rollout_id]
        scored = [d for d in contexts if (rollout.rollout_id, d) in signals]
        pages.append(
            {
                **trace.page(problem, rollout, critique),
                "contexts": [
                    _context_page(
                        solver, prompts, items[rollout.rollout_id, d], critique, signals[rollout.rollout_id, d],
                        temperature, top_k,
                    )
                    for d in scored
                ],
            }
        )  # fmt: skip
    return {
        "format": 1,
        "model": model_name,
        "temperature": temperature,
        "unit": "nats",
        "definition": DEFINITION,
        "contexts": [{"name": d, "label": designs.find_design(d).label} for d in contexts],
        "localisation": localisation,
        "rollouts": pages,
    }


def _shown(
    rollouts: Sequence[tuple[Problem, Rollout, Critique | None]],
    more_critiques: Sequence[Critique],
    contexts: Sequence[str],
) -> list[Shown]:
    """What the self-teacher sees: every rollout in its group, under every context that has something to say."""
    critiques = {(c.form, c.rollout_id): c for c in (*more_critiques, *(c for _, _, c in rollouts if c is not None))}
    problems = list({problem.problem_id: problem for problem, _, _ in rollouts}.values())
    shown: list[Shown] = []
    for members in designs.group_rollouts([rollout for _, rollout, _ in rollouts]):
        problem, group = rollouts[members[0]][0], [rollouts[i][1] for i in members]
        own = {rollout.rollout_id for rollout in group}
        for name in contexts:
            form = designs.find_design(name).form
            made = designs.Group(
                problem=problem,
                rollouts=group,
                critiques=[critiques.get((form, rollout.rollout_id)) for rollout in group],
                elsewhere=[c for (f, i), c in critiques.items() if f == form and i not in own and c.status == "ok"],
                other_problems=problems,
            )
            for rollout, context in zip(group, designs.make_contexts(name, made), strict=True):
                if context.text is not None:
                    shown.append(
                        Shown(
                            problem=problem,
                            rollout=rollout,
                            design=name,
                            text=context.text,
                            introduction=context.introduction,
                        )
                    )
    return shown


class _Trace:
    """A rollout cut into tokens and steps, each with its place."""

    def __init__(
        self,
        solver: Solver,
        problem: Problem,
        rollout: Rollout,
        critique: Critique | None,
        wrong_result: WrongResult | None,
    ) -> None:
        self.text, self.spans = decode_with_spans(solver.tokenizer, rollout.completion.ids)
        self.steps: list[Step] = split_steps(self.text)
        self.names = [
            self.text[a:b] or str(solver.tokenizer.convert_ids_to_tokens(i))
            for (a, b), i in zip(self.spans, rollout.completion.ids, strict=True)
        ]
        # A critic that is faulty on purpose says nothing true about the steps.
        usable = critique is not None and critique.status == "ok" and not critique.critic.startswith("faulty:")
        first = critique.first_error if critique is not None else ""
        labels = [step.label for step in self.steps]
        place = labels.index(first) if usable and first in labels else None
        known = usable and (place is not None or _without_error(rollout, critique))
        self.statuses = [
            "unknown"
            if not known
            else "right"
            if place is None or i < place
            else "wrong"
            if i == place
            else "after_error"
            for i in range(len(self.steps))
        ]
        self.truth = self._truth(place, wrong_result(problem, rollout) if wrong_result else None) if known else None

    def _truth(self, place: int | None, found: tuple[int, int] | None) -> Truth:
        inside = [tokens_inside(self.text, self.spans, step.start, step.end) for step in self.steps]
        right = [t for tokens in (inside if place is None else inside[:place]) for t in tokens]
        wrong = inside[place] if place is not None else []
        result = found[0] if found is not None and found[0] in wrong else None
        # In the embedded task every step is seven words and the sixth is its result.
        results = {tokens[5] for tokens in inside if len(tokens) == 7} & ({*right} | ({result} if result else set()))
        return Truth(
            right=frozenset(right), wrong_step=frozenset(wrong), wrong_result=result, results=frozenset(results)
        )

    def page(self, problem: Problem, rollout: Rollout, critique: Critique | None) -> dict[str, Any]:
        return {
            "rollout_id": rollout.rollout_id,
            "case": CASES.get(critique.case if critique else "", "unknown"),
            "verdict": rollout.verdict,
            "question": problem.question,
            "expected_answer": problem.answer,
            "reference": problem.reference,
            "text": self.text,
            "tokens": [
                {"text": name, "start": a, "end": b, "id": i, "special": a == b}
                for name, (a, b), i in zip(self.names, self.spans, rollout.completion.ids, strict=True)
            ],
            "steps": [
                {"label": step.label, "start": step.start, "end": step.end, "status": status}
                for step, status in zip(self.steps, self.statuses, strict=True)
            ],
        }


def _without_error(rollout: Rollout, critique: Critique | None) -> bool:
    """Whether no located error means no error: a wrong answer whose error was not found says nothing of the steps."""
    if critique is None or critique.first_error:
        return False
    return rollout.verdict == "correct" or critique.case == "C" or critique.critic.startswith("programmatic:")


def _choose(
    rollouts: Sequence[tuple[Problem, Rollout, Critique | None]], count: int
) -> list[tuple[Problem, Rollout, Critique | None]]:
    """A few rollouts of every case, in their order: the first of each, then the second of each, ..."""
    by_case: dict[str, list[tuple[Problem, Rollout, Critique | None]]] = defaultdict(list)
    for entry in rollouts:
        by_case[CASES.get(entry[2].case if entry[2] else "", "unknown")].append(entry)
    order = [case for case in (*dict.fromkeys(CASES.values()), "unknown") if case in by_case]
    chosen: list[tuple[Problem, Rollout, Critique | None]] = []
    rank = 0
    while len(chosen) < min(count, len(rollouts)):
        chosen += [by_case[case][rank] for case in order if rank < len(by_case[case])]
        rank += 1
    kept = {entry[1].rollout_id for entry in chosen[:count]}
    return [entry for case in order for entry in by_case[case] if entry[1].rollout_id in kept]


def _context_page(
    solver: Solver,
    prompts: PromptBuilder,
    item: Shown,
    critique: Critique | None,
    signal: TokenSignal,
    temperature: float,
    top_k: int,
) -> dict[str, Any]:
    page: dict[str, Any] = {
        "name": signal.design,
        "text": item.text,
        "case": critique.case if critique else "",
        "first_error": critique.first_error if critique else "",
        "log_ratio": signal.log_ratio,
        "student_log_prob": signal.student_log_probs,
        "teacher_log_prob": signal.teacher_log_probs,
        "forward_kl": signal.forward_kl,
        "student_entropy": signal.student_entropy,
        "teacher_entropy": signal.teacher_entropy,
    }
    if top_k:
        sides = {"top_student": prompts.student(item.problem), "top_teacher": teacher_ids(prompts, item)}
        for name, prompt in sides.items():
            page[name] = alternatives(solver, prompt, item.rollout.completion.ids, temperature=temperature, k=top_k)
    return page
