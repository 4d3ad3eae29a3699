"""``stepalign signal DUMP``: attempts that another trainer or evaluator wrote down.

With a model they are scored under context designs, as the rollouts of a run are. Without one the numbers that the dump
holds for each token are shown as they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepalign.build import make_prompts, open_session
from stepalign.config import Config, changed
from stepalign.critics import RUN_FILES
from stepalign.domains.table import make_grader
from stepalign.errors import ConfigError
from stepalign.events import Listener, line, silent, warning
from stepalign.feedback import designs
from stepalign.models.places import find_model
from stepalign.models.prompts import PromptBuilder, decode, decode_with_spans, encode_with_spans
from stepalign.problems.dumped import VALUES, Dumped, Unreadable, split_prompt
from stepalign.problems.dumps import Dump, read_dump
from stepalign.records import Attempt, Completion, Critique, Rollout, critique_from_json
from stepalign.report.page import write_token_page
from stepalign.report.scale import shared_limit
from stepalign.storage import jsonl
from stepalign.storage.files import finite, write_json
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.token_signal.files import PAGE_DATA, RECORDS
from stepalign.token_signal.marks import Labels, mark_steps
from stepalign.token_signal.summary import summarise
from stepalign.token_signal.table import SERIES, ScoredCompletion, TokenTable, to_rows
from stepalign.verbs.attempts import graded
from stepalign.verbs.signal.from_jsonl import warn_of_unknown
from stepalign.verbs.signal.rows import say_left_out

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.token_signal.analyse import AttemptInContexts

NUM = 256
"""Attempts of a dump that are looked at unless another number is asked for."""
NUM_DRAWN = 50
"""Attempts that a page of numbers draws."""
SHOWN = ("log_ratio", "teacher_ratio", "advantage", "mismatch_kl", "entropy", "sampler_log_prob")
"""Numbers of a dump that a page shows, in its order; log-probabilities alone where there is nothing else."""
CRITIQUED = "step_aligned"
DEFAULT_CONTEXTS = ("reference", "peer_demonstration", "answer")
"""Designs that need no critic."""
LAST_CONTEXT = "verdict"
"""Where none of them has anything to show, and the dump has rewards."""


def _read(dump: Dump, num: int | None, listener: Listener) -> list[Dumped]:
    skipped: Counter[str] = Counter()
    found = list(islice(read_dump(dump, skipped), num or NUM))
    listener(line(dump.message))
    for reason, count in skipped.items():
        listener(line(f"{count} rows left out: {reason}"))
    if not found:
        raise ConfigError(
            "no row can be read" + "".join(f"; {count} rows: {why}" for why, count in skipped.items()),
            where=str(dump.path),
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Scored by a model


def analyse_dump(
    dump: Dump,
    out: Path,
    config: Config,
    *,
    contexts: tuple[str, ...] = (),
    critiques: Path | None = None,
    num: int | None = None,
    prompts_from: str = "the defaults",
    listener: Listener = silent,
) -> Path:
    """Score the first attempts of a dump under context designs, and under texts that it holds; returns the page.

    Args:
        config: the model, the prompts and the temperature.
        contexts: designs, or columns of the dump that hold a context; where empty its own columns, and the designs
            that need no critic.
        critiques: a folder of ``stepalign critique`` on the same dump, for designs that show a critique.
        num: attempts, from the first on; 256 when None.

    Raises:
        ConfigError: nothing that can be read or shown, a design without its critiques, no model.
        LockedError: ``out`` is in use or holds something else.
    """
    config = as_before(config, out)
    dumped = _read(dump, num, listener)
    own = list(dict.fromkeys(name for one in dumped for name in one.contexts))
    names = contexts or (*own, *((CRITIQUED,) if critiques else ()), *DEFAULT_CONTEXTS)
    written = _critiques(critiques, [name for name in names if name not in own], dump)
    RunFolder.check(out, config, resume=True, kind="analysis", extra=RUN_FILES)
    find_model(config.model.path)
    from stepalign.verbs.signal.folder import write_signal_folder  # loads torch

    with closing(open_session(config, listener)) as session:
        solver = session.solver
        spelled = [_spelled(one, solver) for one in dumped]
        subjects, labels = _subjects(spelled, names, own, written, config, solver, listener)
        if not subjects and not contexts:
            subjects, labels = _subjects(spelled, (LAST_CONTEXT,), own, written, config, solver, listener)
        if not subjects and not contexts and any(one.values for one in dumped):
            listener(line("no context has anything to show: the page holds the numbers of the dump itself"))
            return show_dump(dump, out, config, tokenizer=config.model.path, num=num, listener=silent)
        warn_of_unknown(solver, subjects, len(subjects), listener)
        _say_other_prompts(spelled, subjects, session.prompts, listener)
        return write_signal_folder(
            out,
            config,
            solver,
            session.prompts,
            subjects,
            source={"name": str(dump.path), "sha256": dump.sha256, "contexts": list(labels), "num": num or NUM},
            labels=labels,
            prompts_from=prompts_from,
            total=len(subjects),
            listener=listener,
        )


def _critiques(folder: Path | None, names: Sequence[str], dump: Dump) -> dict[str, Critique]:
    """The stored critiques by rollout. Raises ConfigError for a design that needs some and has none."""
    needy = [name for name in names if designs.find_design(name).needs_critic]
    if folder is None:
        if needy:
            raise ConfigError(
                f"the design {needy[0]} shows a critique, and a dump holds none",
                where="--contexts",
                hint=f"stepalign critique {dump.path} --critic ... --out C, then add --critiques C",
            )
        return {}
    if not (folder / "critiques.jsonl").exists():
        raise ConfigError("the folder holds no critiques", where=str(folder), hint="give the --out of critique")
    more = ("problem_id", "verdict", "details", "alignment")
    rows = jsonl.read_json_lines(folder / "critiques.jsonl")
    return {row["rollout_id"]: critique_from_json({k: v for k, v in row.items() if k not in more}) for row in rows}


def _spelled(one: Dumped, solver: Solver) -> Dumped:
    """The attempt with ids and text, whichever of them its dump lacks."""
    tokenizer = solver.tokenizer
    if one.ids and max(one.ids) >= len(solver.head_VH):
        raise ConfigError(
            f"the model has no token {max(one.ids)}",
            where=f"attempt {one.name}",
            hint="give the --model whose tokens the dump holds",
        )
    if one.ids:
        text = decode(tokenizer, one.ids)
        return _with_question(one if one.text == text else replace(one, text=text), tokenizer)
    return replace(one, ids=encode_with_spans(tokenizer, one.text)[0])


def _with_question(one: Dumped, tokenizer: Any) -> Dumped:
    """The question from the ids of the prompt, where the dump holds no text of it."""
    if one.question:
        return one
    text = tokenizer.decode(list(one.prompt_ids), skip_special_tokens=False)
    try:
        system, question = split_prompt(text)
    except Unreadable:  # several turns: all of it is what was asked
        system, question = "", text
    return replace(one, system=system, question=question)


def _subjects(
    dumped: Sequence[Dumped],
    names: Sequence[str],
    own: Sequence[str],
    critiques: Mapping[str, Critique],
    config: Config,
    solver: Solver,
    listener: Listener,
) -> tuple[list[AttemptInContexts], dict[str, str]]:
    """The attempts under every context, and the labels of these."""
    from stepalign.token_signal.analyse import AttemptInContexts, Shown, attempts_under

    with make_grader(config.data) as grader:
        pairs = [(_rollout(one, graded(one.attempt(), grader)), critiques.get(one.name)) for one in dumped]
    asked = [name for name in names if name not in own]
    under, left_out = attempts_under(pairs, asked)
    found = {subject.attempt.rollout_id: subject for subject in under}
    builders: dict[str, PromptBuilder | None] = {"": None}
    subjects = []
    for one, (rollout, _) in zip(dumped, pairs, strict=True):
        if one.system not in builders:
            builders[one.system] = make_prompts(changed(config, {"prompts.system": one.system}, "the dump"), solver)
        shown = {name: Shown(text=one.contexts[name]) for name in names if name in own and name in one.contexts}
        subject = found.get(one.name) or AttemptInContexts(attempt=rollout.attempt, ids=one.ids, contexts={})
        if shown or subject.contexts:
            contexts = {name: text for name in names if (text := {**subject.contexts, **shown}.get(name))}
            whole = decode(solver.tokenizer, one.ids) == one.text
            subjects.append(
                replace(
                    subject,
                    attempt=replace(subject.attempt, text=one.text),
                    contexts=contexts,
                    spans=None if whole else encode_with_spans(solver.tokenizer, one.text)[1],
                    prompts=builders[one.system],
                )
            )
    for name, reasons in left_out.items():
        say_left_out(listener, name, reasons, len(pairs))
    used = {name for subject in subjects for name in subject.contexts}
    return subjects, {name: name if name in own else designs.find_design(name).label for name in names if name in used}


def _rollout(one: Dumped, attempt: Attempt) -> Rollout:
    undefined = (math.nan,) * len(one.ids)
    completion = Completion(
        ids=tuple(one.ids),
        log_probs=undefined,
        finish_reason="length" if one.truncated else "stop",
        policy_version=one.step,
    )
    return Rollout(attempt=attempt, completion=completion, step=one.step, group_index=0)


def _say_other_prompts(
    dumped: Sequence[Dumped], subjects: Sequence[AttemptInContexts], prompts: PromptBuilder, listener: Listener
) -> None:
    """Whether the student's prompts are those that the dump holds, where it holds their ids."""
    ids = {one.name: tuple(one.prompt_ids) for one in dumped if one.prompt_ids}
    known = [subject for subject in subjects if subject.attempt.rollout_id in ids]
    other = sum(
        (subject.prompts or prompts).student(subject.attempt.problem) != ids[subject.attempt.rollout_id]
        for subject in known
    )
    if other:
        listener(
            warning(
                f"the prompts of {other} of {len(known)} attempts are not those of the dump, token by token: another "
                "chat template, other chat options, or another system message (--recipe and --set change them)"
            )
        )


# ---------------------------------------------------------------------------------------------------------------------
# Shown as the dump holds them


def show_dump(
    dump: Dump, out: Path, config: Config, *, tokenizer: str = "", num: int | None = None, listener: Listener = silent
) -> Path:
    """Write the page of the numbers that a dump holds for each token; no model is loaded. Returns the page.

    Args:
        tokenizer: a folder or a Hub name, for a dump of token ids without their text.

    Raises:
        ConfigError: the dump holds no numbers of tokens.
    """
    found = [one for one in _read(dump, num, listener) if one.values]
    if not found:
        raise ConfigError(
            f"{dump.layout.name}: this dump holds no numbers of its tokens",
            where=str(dump.path),
            hint="--model FOLDER or a Hub name scores its attempts",
        )
    spell = None
    if tokenizer:
        from stepalign.models.load import load_tokenizer

        spell = load_tokenizer(tokenizer)
    elif any(one.ids and not one.pieces for one in found):
        listener(line("the dump holds token ids: --tokenizer FOLDER or a Hub name shows their text"))
    scored = [_laid_out(one, spell) for one in found]
    names = [name for name in SHOWN if any(name in one.tables for one in scored)]
    head = {
        "format": 1,
        "model": "",
        "kind": "numbers",
        "num_rollouts": len(scored),
        "unit": "as in the dump",
        "definition": f"numbers of {dump.layout.name}, as they are",
        "source": {"name": str(dump.path), "sha256": dump.sha256},
    }
    with RunFolder(out, config, resume=True, kind="analysis", extra=RUN_FILES) as folder:
        jsonl.cut(out / RECORDS, 0)
        folder.append("signal", (row for one in scored for row in to_rows(one)))
        labels = {name: VALUES[name] for name in names}
        signal = summarise(lambda: scored, head, labels, num_shown=NUM_DRAWN)
        limits = {
            name: shared_limit(v for one in scored if name in one.tables for v in one.tables[name].log_ratio)
            for name in names
        }
        scales = [{**context, "limit": limits[context["name"]]} for context in signal["contexts"]]
        signal = finite({**signal, "contexts": scales, "localisation": []})
        write_json(out / PAGE_DATA, signal, indent=None)
        return write_token_page(signal, out / "index.html")


def _laid_out(one: Dumped, tokenizer: Any) -> ScoredCompletion:
    length = len(next(iter(one.values.values())))
    if tokenizer is not None and one.ids:
        text, spans = decode_with_spans(tokenizer, one.ids)
        one = _with_question(one, tokenizer)
    else:
        pieces = list(one.pieces) or [f"{i} " for i in one.ids]
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        text, spans = "".join(pieces), list(zip([0, *ends[:-1]], ends, strict=True))
    attempt = one.attempt()
    marks = mark_steps(attempt, one.ids, text, spans, labels=Labels())
    tokens = [text[a:b] or f"[{i}]" for (a, b), i in zip(spans, one.ids or range(length), strict=True)]
    columns = {name: np.array(column, dtype=np.float64) for name, column in one.values.items()}
    undefined = np.full(length, np.nan)
    student = columns.get("trainer_log_prob", columns.get("sampler_log_prob", undefined))
    others = {"student_log_prob": student, "student_entropy": columns.get("entropy", undefined)}
    more = [name for name in SHOWN[:-1] if name in columns] or [name for name in SHOWN if name in columns]
    tables = {
        name: TokenTable(
            context=name,
            text="",
            tokens=tokens,
            step=marks.step,
            **{**dict.fromkeys(SERIES, undefined), **others, "log_ratio": columns[name]},
        )
        for name in more
    }
    return ScoredCompletion(
        rollout_id=one.name,
        question=one.question,
        expected_answer=attempt.problem.answer or None,
        reference=attempt.problem.reference,
        verdict=attempt.verdict,
        case="correct" if attempt.verdict == "correct" else "unknown",
        text=text,
        token_ids=list(one.ids) or [None] * length,
        tokens=tokens,
        spans=spans,
        special=[i for i, (a, b) in enumerate(spans) if a == b],
        tables=tables,
        **marks._asdict(),
    )
