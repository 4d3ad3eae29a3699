"""``stepalign critique``: a critic over stored attempts, what is wrong with its critiques, and a page about it.

    attempts -> critic -> review -> critiques.jsonl -> findings.json -> index.html

Every critique is on disk as soon as it is judged, and every reply before that is in the cache, so a command that is
killed at any instant goes on where it was and asks for nothing twice. Loads no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepalign.config import Config, changed, load_config
from stepalign.critics import RUN_FILES, Critic
from stepalign.critics.calculation import NAME as CALCULATION
from stepalign.critics.calculation import CalculationCritic
from stepalign.domains.table import find_domain, make_grader, make_programmatic_critic
from stepalign.errors import BudgetSpentError, ConfigError, EndpointError, LockedError, UserError
from stepalign.events import Event, Listener, progress, silent
from stepalign.feedback.alignment import Alignment
from stepalign.feedback.findings import FINDINGS
from stepalign.problems.sets import named
from stepalign.records import Attempt, to_json
from stepalign.rollouts.review import Review, Rules, ask_all, make_rules
from stepalign.storage.files import finite, read_json, write_json
from stepalign.storage.jsonl import keep_records
from stepalign.storage.run_folder import RunFolder
from stepalign.verbs.attempts import StoredAttempts, graded
from stepalign.waiting import wait_for

FORMAT = 1
NUM_EXAMPLES = 6
"""Examples kept of each finding."""
PAID = ("attempts", "prompt_tokens", "completion_tokens", "cost", "faults")
MAX_STEP = 2_000
"""Characters of a step in an example; what is cut is said."""


def critique_rollouts(
    config: Config, attempts: StoredAttempts, out: Path, *, resume: bool, listener: Listener = silent
) -> dict[str, Any]:
    """Ask for a critique of every attempt; write critiques.jsonl, findings.json and index.html (docs/formats.md).

    Args:
        resume: go on in a folder that holds a part of the same work. Critiques that failed are asked for again.

    Returns:
        What findings.json holds.

    Raises:
        BudgetSpentError: the budget ended before the work; what is there is written, page included.
        ConfigError, EndpointError, LockedError: nothing was asked.
    """
    config = _as_begun(config, out)
    with RunFolder(out, config, resume=resume, kind="critique", extra=RUN_FILES) as folder:
        _refuse_other_attempts(out / "source.json", attempts)
        done = keep_records(out / "critiques.jsonl", lambda line: line["status"] != "failed")
        names = {line["rollout_id"] for line in done}
        with make_grader(config.data) as grader:
            rules = make_rules(config.critic, config.data, grader)
            critic = _open_critic(config, attempts, out, listener)
            if not (out / "source.json").exists():
                about = {"source": attempts.source, "sha256": attempts.sha256, "attempts": len(attempts.attempts)}
                write_json(out / "source.json", {**about, "skipped": attempts.skipped})
            found = Counter(name for line in done for name in line["findings"])
            wanted = (graded(one, grader) for one in attempts.attempts if one.rollout_id not in names)

            async def work() -> None:
                listener(_progress(len(done), attempts, found))
                async for review in ask_all(critic, wanted, rules, ahead=2 * config.critic.concurrency):
                    line = _line(review)
                    folder.append("critiques", [line])
                    done.append(line)
                    found.update(line["findings"])
                    listener(_progress(len(done), attempts, found))

            try:
                wait_for(work())
            except BudgetSpentError:
                _publish(config, attempts, done, rules, critic, out)
                raise
            finally:
                critic.close()
        return _publish(config, attempts, done, rules, critic, out)


def _as_begun(config: Config, out: Path) -> Config:
    """The folder's own recipe with the critic, prompts and data asked for: nothing else has a say in a critique."""
    file = out / "config.toml"
    if not file.exists():
        return config
    return changed(
        load_config(str(file)), config.model_dump(mode="json", include={"critic", "prompts", "data"}), str(file)
    )


def refuse_without_critiques(summary: Mapping[str, Any]) -> None:
    """Raise a UserError where no critique is usable: everything is written, and nothing can be learnt from it."""
    if summary["usable"]:
        return
    counts = {finding["name"]: finding["count"] for finding in summary["findings"] if finding["count"]}
    never_came = counts.get("failed") == summary["critiques"]
    calculated = summary["critic"] == CALCULATION
    named = ", ".join(f"{count} {name}" for name, count in counts.items())
    raise (EndpointError if never_came and not calculated else UserError)(
        f"none of the {summary['critiques']} critiques is usable: {named}",
        where=f"the critic {summary['critic']}",
        hint="it compares with a solution that shows its calculations: the column reference, or answer as GSM8K has it"
        if calculated
        else "the page shows the replies; --resume asks again for those that failed",
    )


def _progress(done: int, attempts: StoredAttempts, found: Counter[str]) -> Event:
    """With the two most frequent findings so far beside it."""
    note = "  ".join(f"{count} {name}" for name, count in found.most_common(2))
    return progress("critiques", done, len(attempts.attempts), note)


def _open_critic(config: Config, attempts: StoredAttempts, out: Path, listener: Listener) -> Critic:
    section, domain = config.critic, find_domain(config.data)
    if section.kind == "endpoint":
        from stepalign.critics.served import open_endpoint_critic

        return open_endpoint_critic(
            section, prompt=config.prompts.critic, cache_folder=out, ledger_folder=out, listener=listener
        )
    if section.kind == "calculation" and attempts.config is None:  # a plain file: any problems with calculations
        return CalculationCritic()
    if section.kind == "calculation":
        return make_programmatic_critic(config.data, section, "trace", config.training.seed)
    foreign = [attempt.problem for attempt in attempts.attempts if not domain.knows(attempt.problem)]
    if foreign or domain.critic is None:
        raise ConfigError(
            "the programmatic critic knows the embedded task only" + (f": {named(foreign[0])}" if foreign else ""),
            where=attempts.source,
            hint="give a served critic: --critic http://HOST:PORT/v1 --model NAME",
        )
    return domain.critic(section, "trace", config.training.seed)


def _refuse_other_attempts(file: Path, attempts: StoredAttempts) -> None:
    before = read_json(file)["source"] if file.exists() and read_json(file)["sha256"] != attempts.sha256 else None
    if before is not None:
        raise LockedError(
            f"the folder holds the critiques of other attempts: {before}, or that file has changed since",
            where=str(file),
            hint="give another --out; replies that were paid for stay usable with --set critic.cache=FILE",
        )


# ---------------------------------------------------------------------------------------------------------------------
# critiques.jsonl


def _line(review: Review) -> dict[str, Any]:
    """A critique with its alignment and everything that the summary needs, JSON-ready."""
    attempt = review.attempt
    return {
        **finite(to_json(review.critique)),
        "problem_id": attempt.problem.problem_id,
        "verdict": attempt.verdict,
        "details": dict(review.details),
        "alignment": None if review.alignment is None else finite(_alignment(review.alignment)),
    }


def _alignment(found: Alignment) -> dict[str, Any]:
    return {
        "case": found.case,
        "first_error": found.first_error_label,
        "verbatim_share": found.verbatim_share,
        "wrong_text_repeated": found.wrong_text_repeated,
        "full_solution": found.full_solution,
        "solver_answer": found.solver_answer,
        "critique_answer": found.critique_answer,
        "answer_right": found.answer_right,
        "matches": [
            {
                "status": match.status,
                "solver": _span(found.solver_steps, match.solver),
                "critique": _span(found.critique_steps, match.critique),
                "first_error": match.solver is not None and match.solver == found.first_error,
            }
            for match in found.matches
        ],
    }


def _span(steps: Sequence[Any], index: int | None) -> list[Any] | None:
    return None if index is None else [steps[index].label, steps[index].start, steps[index].end]


# ---------------------------------------------------------------------------------------------------------------------
# findings.json and the page


def _publish(
    config: Config,
    attempts: StoredAttempts,
    lines: Sequence[Mapping[str, Any]],
    rules: Rules,
    critic: Critic,
    out: Path,
) -> dict[str, Any]:
    from stepalign.report.critiques import write_critique_page

    summary = finite(_summary(config, attempts, lines, rules, critic))
    write_json(out / "findings.json", summary)
    write_critique_page(summary, out / "index.html")
    return summary


def _summary(
    config: Config, attempts: StoredAttempts, lines: Sequence[Mapping[str, Any]], rules: Rules, critic: Critic
) -> dict[str, Any]:
    by_name = {attempt.rollout_id: attempt for attempt in attempts.attempts}
    order = {name: place for place, name in enumerate(by_name)}
    lines = sorted(lines, key=lambda line: order[line["rollout_id"]])  # replies come in any order
    shares = [line["alignment"]["verbatim_share"] for line in lines if line["alignment"]]
    shares = [share for share in shares if share is not None]
    ledger = getattr(critic, "ledger", None)
    spent = {} if ledger is None else ledger.as_dict()
    return {
        "format": FORMAT,
        "critic": critic.name,
        "sees": config.critic.sees,
        "prompt_hash": next((line["prompt_hash"] for line in lines), ""),
        "source": attempts.source,
        "attempts": len(attempts.attempts),
        "skipped": dict(attempts.skipped),
        "critiques": len(lines),
        "usable": sum(line["status"] == "ok" for line in lines),
        "without_finding": sum(not line["findings"] for line in lines),
        "verdicts": dict(Counter(line["verdict"] for line in lines)),
        "cases": dict(sorted(Counter(line["case"] or "unknown" for line in lines).items())),
        "policies": dict(rules.policies),
        "outcomes": dict(Counter(line["policy"] for line in lines)),
        "masked": dict(Counter(line["decided_by"] for line in lines if line["policy"] == "mask").most_common()),
        "retries": sum(line["retries"] for line in lines),
        "mean_verbatim_share": sum(shares) / len(shares) if shares else float("nan"),
        "paid": {name: spent[name] for name in PAID} if spent else None,
        "cached": sum(line["cached"] for line in lines),
        "findings": [
            {
                "name": name,
                "count": sum(name in line["findings"] for line in lines),
                "summary": finding.summary,
                "teaches": finding.teaches,
                "policy": rules.policies[name],
                "examples": list(_examples((line for line in lines if name in line["findings"]), name, by_name)),
            }
            for name, finding in FINDINGS.items()
        ],
        "clean_examples": list(_examples((line for line in lines if not line["findings"]), "", by_name)),
    }


def _examples(
    lines: Iterable[Mapping[str, Any]], name: str, by_name: Mapping[str, Attempt]
) -> Iterator[dict[str, Any]]:
    for _, line in zip(range(NUM_EXAMPLES), lines, strict=False):
        attempt = by_name[line["rollout_id"]]
        yield {
            "rollout_id": line["rollout_id"],
            "verdict": line["verdict"],
            "case": line["case"],
            "policy": line["policy"],
            "decided_by": line["decided_by"],
            "detail": line["details"].get(name, ""),
            "located": line["verdict"] != "correct" and (line["alignment"] or {}).get("answer_right") is not False,
            "question": _cut(attempt.problem.question),
            "expected_answer": attempt.problem.answer,
            "attempt": _cut(attempt.text) if line["alignment"] is None else "",
            "reply": _cut(line["raw"]) if line["alignment"] is None else "",
            "steps": _step_pairs(line, attempt.text),
        }


def _step_pairs(line: Mapping[str, Any], attempt: str) -> list[dict[str, Any]]:
    """The two texts side by side, step by step."""
    if line["alignment"] is None:
        return []
    return [
        {
            "status": match["status"],
            "first_error": match["first_error"],
            "solver": _text(attempt, match["solver"]),
            "critique": _text(line["text"], match["critique"]),
        }
        for match in line["alignment"]["matches"]
    ]


def _text(text: str, span: Sequence[Any] | None) -> str | None:
    return None if span is None else _cut(text[span[1] : span[2]].strip())


def _cut(text: str) -> str:
    if len(text) <= MAX_STEP:
        return text
    return f"{text[:MAX_STEP]} [... {len(text) - MAX_STEP} more characters]"
