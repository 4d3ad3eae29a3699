"""``stepalign signal FILE --model DIR``: the rows of a plain file scored under their own contexts, no run needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stepalign.build import make_prompts, open_session
from stepalign.config import Config, changed
from stepalign.critics import RUN_FILES
from stepalign.domains.math.grade import Grade
from stepalign.errors import ConfigError
from stepalign.events import Listener, line, silent, warning
from stepalign.models.places import find_model
from stepalign.models.prompts import PromptBuilder, decode, encode_with_spans, unknown_id
from stepalign.records import Attempt, Critique, Problem
from stepalign.storage.fingerprint import sha256
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.verbs.signal.rows import PlainFile, Row, check_file, own_keys, read_plain_rows, row_id, say_left_out

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.token_signal.analyse import AttemptInContexts

CRITIQUE = "step_aligned"
"""The context of this name is taken as a critique: where it first departs from the attempt, the attempt is wrong."""


def analyse_file(
    path: Path,
    out: Path,
    config: Config,
    *,
    contexts: tuple[str, ...] = (),
    num: int | None = None,
    prompts_from: str = "the defaults",
    listener: Listener = silent,
) -> Path:
    """Score the rows of a JSONL file under their own contexts; returns the page.

    Args:
        config: the model, the prompts and the temperature.
        contexts: names of contexts to keep; all of them when empty.
        num: rows, from the first on; all of them when None.
        prompts_from: where the configuration comes from, for the reader.
        listener: receives what is left out, and how many rows the tokenizer mostly does not know.

    Raises:
        ConfigError: a row that cannot be read (with its line), an unknown context, no model.
        LockedError: ``out`` is in use or holds something else.
    """
    config = as_before(config, out)
    file = check_file(path, contexts, num)
    if file.own_prompts:
        listener(line(f"{file.own_prompts} of {file.total} rows bring prompts of their own"))
    for name, count in file.empty.items():
        say_left_out(listener, name, {"no text in the file": count} if count else {}, file.total)
    names = [name for name in file.contexts if file.empty[name] < file.total]
    RunFolder.check(out, config, resume=True, kind="analysis", extra=RUN_FILES)
    find_model(config.model.path)
    from stepalign.verbs.signal.folder import write_signal_folder  # loads torch

    with closing(open_session(config, listener)) as session:
        attempts = partial(read_plain_attempts, file, config, session.solver, session.prompts, num)
        # All rows are read before the first is scored: one that has no room ends the work at once.
        warn_of_unknown(session.solver, attempts(), file.total, listener)
        return write_signal_folder(
            out,
            config,
            session.solver,
            session.prompts,
            attempts(),
            source={"name": path.name, "sha256": file.sha256, "contexts": names, "num": num},
            labels={name: name for name in names},
            prompts_from=prompts_from,
            total=file.total,
            listener=listener,
        )


def warn_of_unknown(solver: Solver, attempts: Iterable[AttemptInContexts], total: int, listener: Listener) -> None:
    """Say how many attempts are mostly unknown to the tokenizer."""
    lacking = unknown_id(solver.tokenizer)
    unknown = sum(lacking is not None and 2 * list(one.ids).count(lacking) > len(one.ids) for one in attempts)
    if unknown:
        listener(
            warning(
                f"{unknown} of {total} rows ({unknown / total:.0%}) are mostly unknown to this "
                "tokenizer: their numbers mean little; score them with another --model"
            )
        )


def read_plain_attempts(
    file: PlainFile, config: Config, solver: Solver, prompts: PromptBuilder, num: int | None
) -> Iterator[AttemptInContexts]:
    """The rows as attempts, one at a time. Raises ConfigError with file and line."""
    from stepalign.token_signal.analyse import check_positions

    builders: dict[str, PromptBuilder | None] = {}
    for number, row in islice(read_plain_rows(file.path), num):
        if any(row["contexts"].get(name) for name in file.contexts):
            where, key = f"{file.path}:{number}", json.dumps(own_keys(row), sort_keys=True)
            if key not in builders:
                builders[key] = own_prompts(row, config, solver, where)
            subject = to_subject(row, row_id(row, number), file.contexts, solver, where, builders[key])
            check_positions(solver, builders[key] or prompts, subject, where)
            yield subject


def to_subject(
    row: Row, rollout_id: str, contexts: Iterable[str], solver: Solver, where: str, prompts: PromptBuilder | None = None
) -> AttemptInContexts:
    """A checked row as the attempt that is scored, under those of the named contexts that it has a text for.

    Raises:
        ConfigError: a completion without tokens, or with ids that the model does not have.
    """
    from stepalign.token_signal.analyse import AttemptInContexts, Shown
    from stepalign.token_signal.marks import Labels

    ids, spans = row.get("completion_ids"), None
    if ids is None:  # spans where the ids alone do not spell the text
        ids, spans = encode_with_spans(solver.tokenizer, row["completion"])
    if not ids:
        raise ConfigError("the completion has no tokens", where=where)
    if max(ids) >= len(solver.head_VH):
        raise ConfigError(f"the model has no token {max(ids)}", where=where, hint="are the ids of another tokenizer?")
    attempt = Attempt(
        rollout_id=rollout_id,
        problem=Problem(
            problem_id=sha256(row["question"])[:16],
            question=row["question"],
            answer=row.get("answer") or "",
            reference=row.get("reference") or None,
        ),
        text=row["completion"] if spans else decode(solver.tokenizer, ids),
        grade=Grade.of(row.get("verdict") or "undecided"),
    )
    shown = {name: Shown(text=row["contexts"][name]) for name in contexts if row["contexts"].get(name)}
    critique = None
    if CRITIQUE in shown:
        critique = Critique(rollout_id=rollout_id, critic="given", status="ok", text=shown[CRITIQUE].text)
    return AttemptInContexts(
        attempt=attempt,
        ids=ids,
        contexts=shown,
        critique=critique,
        labels=Labels(wrong_step=row.get("wrong_step"), wrong_text=row.get("wrong_text")),
        case=row.get("case") or "",
        spans=spans,
        prompts=prompts,
    )


def own_prompts(row: Row, config: Config, solver: Solver, where: str) -> PromptBuilder | None:
    """The prompts that a row brings; None where it brings none. Raises ConfigError where they cannot be used."""
    keys = own_keys(row)
    try:
        return make_prompts(changed(config, keys, where), solver) if keys else None
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}: {error.where}", hint=error.hint) from error
