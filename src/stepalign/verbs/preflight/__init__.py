"""``stepalign preflight``: a few dozen rollouts, no training, and a verdict on every context design."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepalign.build import check_critic, open_session
from stepalign.config import Config, Settings, changed, load_config, parse_settings
from stepalign.critics import RUN_FILES
from stepalign.domains.math.thinking import without_thinking
from stepalign.domains.table import find_domain
from stepalign.errors import ConfigError, UserError
from stepalign.evaluation.canaries import mentions_feedback
from stepalign.evaluation.statistics import Interval
from stepalign.events import Listener, line
from stepalign.feedback import designs
from stepalign.models.prompts import opened_by
from stepalign.storage.files import finite, write_json
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.token_signal import evidence
from stepalign.token_signal.evidence import share
from stepalign.token_signal.table import NULL, SHUFFLED
from stepalign.token_signal.verdict import judge
from stepalign.verbs.checks import run_checks
from stepalign.verbs.footprint import expected
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.progress import for_python

if TYPE_CHECKING:
    from stepalign.verbs.preflight.look import Look, Shown

FILE, PAGE, SIGNAL = "preflight.json", "index.html", "signal.json"


class PreflightError(UserError):
    """The recipe's own condition would not teach (exit code 6)."""

    exit_code = 6


def preflight(
    recipe: str | Path,
    overrides: Settings | None = None,
    *,
    out: str | Path,
    designs: Sequence[str] = (),
    num: int = 32,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Whether the feedback of a recipe would teach, as ``stepalign preflight`` says; returns preflight.json.

    Arguments as for ``train``; ``designs`` besides the recipe's own condition, ``num`` rollouts. A verdict of "no" is
    in the result and raises nothing.

    Raises:
        ConfigError, EndpointError: as ``train``.
    """
    with for_python(listener) as heard:
        config = changed(load_config(recipe), parse_settings(overrides or {}), "overrides")
        return preflight_config(config, Path(out), names=designs, num=num, listener=heard)


def refuse_no(found: Mapping[str, Any], out: Path) -> None:
    """Raise PreflightError where the recipe's own condition got a "no"."""
    own = found["designs"][found["condition"]]
    if own["verdict"] == "no":
        raise PreflightError(
            f"no: {own['reasons'][0]}", where=f"condition {found['condition']}", hint=own["details"][0]["mend"]
        )


def preflight_config(
    config: Config, out: Path, *, names: Sequence[str], num: int, listener: Listener
) -> dict[str, Any]:
    """Measure and judge; writes preflight.json, signal.json and index.html into a folder.

    Raises:
        ConfigError, EndpointError: see the checks; nothing is written before them.
    """
    from stepalign.report.preflight import write_preflight_page

    begin = time.perf_counter()
    config = as_before(config, out)
    chosen = _designs(config, names)
    inputs = Inputs(config, listener)
    run_checks(inputs)
    RunFolder.check(out, config, resume=True, kind="preflight", extra=RUN_FILES)
    check_critic(config, chosen)
    from stepalign.verbs.preflight.look import TRIES, Look

    folder = RunFolder(out, config, resume=True, kind="preflight", extra=RUN_FILES)
    with folder, closing(open_session(config, listener)) as session:
        look = Look(session, inputs.problems["train"], chosen, num, listener, out)
        look.measure()
        solver = _solver_numbers(look)
        rows = {name: _row(look, name, solver) for name in chosen}
        for name, row in rows.items():
            listener(line(f"{name}: {row['verdict']}" + "".join(f"; {reason}" for reason in row["reasons"][:1])))
        found = {
            "format": 1,
            "condition": chosen[0],
            "verdict": rows[chosen[0]]["verdict"],
            "model": config.model.path,
            "temperature": config.sampling.temperature,
            "num_rollouts": len(look.rollouts),
            "num_problems": len(look.problems),
            "num_tries": TRIES,
            "solver": _numbers(solver),
            "designs": rows,
            "expected": _expected(look),
            "seconds": time.perf_counter() - begin,
        }
        found, signal = finite(found), finite(_signal(look))
        write_json(out / FILE, found)
        write_json(out / SIGNAL, signal, indent=None)
        write_preflight_page(found, signal, out / PAGE)
    return found


def _designs(config: Config, names: Sequence[str]) -> list[str]:
    """Names of designs, the condition's first; conditions are taken by name as well. Raises ConfigError."""
    if config.objective.teacher.is_other:
        raise ConfigError(
            "a preflight measures the solver as its own teacher, and the recipe names another one",
            where="objective.teacher",
            hint="to see what a context teaches, name no other teacher, and a condition with a context",
        )
    own = designs.find_condition(config.condition).design
    try:
        asked = [designs.find_condition(name).design for name in names or config.signal.contexts]
    except ConfigError as error:
        raise ConfigError(error.what, where="--designs", hint=error.hint) from None
    for name in (own, *asked):
        if designs.find_design(name).show_turn is not None:
            raise ConfigError(
                f"the design {name} shows a context for every turn, and a preflight looks at whole attempts",
                where="--designs, condition",
                hint="stepalign signal RUN --contexts NAME shows the tokens of its turns",
            )
    return list(dict.fromkeys([own, *asked]))


def _solver_numbers(look: Look) -> dict[str, Interval]:
    rollouts = [*look.rollouts, *look.tries]
    problems = [rollout.problem_id for rollout in rollouts]
    tokenizer = look.session.solver.tokenizer
    opens = [bool(opened_by(tokenizer, group.prompt_ids)) for group in look.groups for _ in group.rollouts]
    thinks = [opened or without_thinking(r.text) != r.text for opened, r in zip(opens, look.rollouts, strict=True)]
    has_answers = find_domain(look.config.data).has_answers
    answered = [r.answer is not None or not has_answers for r in rollouts]
    mixed = [len({r.reward for r in group.rollouts if r.reward == r.reward}) > 1 for group in look.groups]
    return {
        "pass_rate": share([r.verdict == "correct" for r in rollouts], problems),
        "answered": share(answered, problems),
        "cut": share([r.completion.finish_reason == "length" for r in rollouts], problems),
        "thinking": share(thinks),
        **({"mixed": share(mixed)} if look.group > 1 else {}),
    }


def _row(look: Look, name: str, solver: Mapping[str, Interval]) -> dict[str, Any]:
    """The entry of one design."""
    design, shown, rollouts = designs.find_design(name), look.shown[name], look.rollouts
    numbers: dict[str, Interval] = dict(solver)
    if design.has_context:
        has_answers, pairs = find_domain(look.config.data).has_answers, zip(shown.contexts, rollouts, strict=True)
        answers = [(c.text, r.problem.answer if has_answers else "", r) for c, r in pairs if c.text is not None]
        rates = [(rollouts[i].problem_id, rate) for i, rate in shown.rates.items()]
        failed = [(rollouts[i].problem_id, rate) for i, rate in shown.rates.items() if look.wrong[i]]
        numbers |= {
            "covered": share([context.text is not None for context in shown.contexts]),
            "gain": evidence.gain(look.student, rates),
            "gain_where_wrong": evidence.gain(look.student, failed),
            "self_teacher": share([rate for _, rate in rates], [problem for problem, _ in rates]),
            "unknown_tokens": share(shown.unknown),
            "mentions": share([mentions_feedback(text) for text in shown.texts]),
            "answer_in_context": share([evidence.holds_answer(t, a) for t, a, _ in answers]),
            "bare_answer": share([evidence.gives_away(t, a, r.text) for t, a, r in answers]),
            **_critic_numbers(look, shown),
        }
    elif design.penalty:
        numbers.pop("mixed", None)
    numbers |= evidence.token_numbers([one.scored for one in look.analysed], name, shown.gradients)
    if shown.what_if.get("change"):
        numbers["gain_at_spikes"] = Interval(**shown.what_if["change"])
    word, reasons = judge(numbers, has_teacher=design.has_context)
    findings = Counter(finding for c in shown.critiques if c is not None for finding in c.findings)
    return {
        "label": design.label,
        "verdict": word,
        "reasons": [reason.text for reason in reasons],
        "details": [asdict(reason) for reason in reasons],
        "numbers": _numbers(numbers),
        "masked": dict(shown.masked),
        "findings": dict(findings),
        "counterfactual": shown.what_if or None,
    }


def _critic_numbers(look: Look, shown: Shown) -> dict[str, Interval]:
    pairs = [(c, wrong) for c, wrong in zip(shown.critiques, look.wrong, strict=True) if c is not None]
    if not pairs:
        return {}
    wrong = [c for c, is_wrong in pairs if is_wrong and c.status == "ok"]
    return {
        "usable": share([c.status == "ok" for c, _ in pairs]),
        **{name: share([name in c.findings for c in wrong]) for name in ("misses_error", "quotes_wrong_step")},
        **{name: share([name in c.findings for c, _ in pairs]) for name in ("not_verbatim", "wrong_answer")},
    }


def _expected(look: Look) -> dict[str, Any]:
    paid = [c for c in look.shown[look.names[0]].critiques if c is not None]
    return expected(
        look.config,
        completion_tokens=float(np.mean([len(r.completion.ids) for r in look.rollouts])),
        critic_tokens=(
            float(np.mean([c.prompt_tokens for c in paid])) if paid else 0.0,
            float(np.mean([c.completion_tokens for c in paid])) if paid else 0.0,
        ),
        seconds=look.seconds,
    )


def _signal(look: Look) -> dict[str, Any]:
    """The tokens of a few attempts, for the page."""
    from stepalign.token_signal.summary import header, summarise

    labels = {}
    for name in look.names:
        label = designs.find_design(name).label
        labels |= {name: label, name + NULL: f"{label}: null", name + SHUFFLED: f"{label}: another attempt's"}
    head = header(look.config.model.path, look.config.sampling.temperature)
    scored, num_shown = [one.scored for one in look.analysed], look.config.signal.num_shown
    what_ifs = {name: shown.what_if for name, shown in look.shown.items() if shown.what_if}
    return {**summarise(lambda: scored, head, labels, num_shown=num_shown), "counterfactual": what_ifs}


def _numbers(found: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(number) for name, number in found.items() if not math.isnan(number.value)}
