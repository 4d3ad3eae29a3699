"""``stepalign signal RUN``: the rollouts that a run has kept, scored under any context designs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stepalign.build import find_truth, open_session
from stepalign.config import Config, changed, load_config
from stepalign.critics import RUN_FILES
from stepalign.domains.table import find_domain, has_program, load_set, make_grader
from stepalign.errors import ConfigError
from stepalign.events import Listener, silent
from stepalign.feedback import designs
from stepalign.models.places import find_model
from stepalign.records import Critique, Problem, Rollout, critique_from_json
from stepalign.storage.jsonl import read_json_lines
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.storage.sums import check_sums
from stepalign.verbs.attempts import read_rollouts
from stepalign.verbs.signal.collect import more_critiques
from stepalign.verbs.signal.rows import say_left_out


def analyse_run(
    run: Path,
    out: Path,
    *,
    contexts: tuple[str, ...] = (),
    model: str = "",
    num: int | None = None,
    counterfactual: int = 0,
    settings: Iterable[str] = (),
    listener: Listener = silent,
) -> Path:
    """Score a run's first rollouts under context designs; returns the page.

    Args:
        contexts: names of context designs; the recipe's ``signal.contexts`` when empty. Designs that need a critique
            use the stored ones; a programmatic critic writes those that are not there.
        model: scores the rollouts; the run's untrained solver when empty.
        num: rollouts, from the first on; 256 when None.
        counterfactual: continuations of each version of the strongest tokens; 0 draws none.
        listener: receives what is left out.

    Raises:
        ConfigError: not a run folder, no rollouts, an unknown design, or no context that has anything to say.
        LockedError: ``out`` is in use or holds something else.
    """
    if not (run / "config.toml").exists():
        raise ConfigError(
            "not a run folder: config.toml is missing",
            where=str(run),
            hint="give the --out of a training, or a JSONL file with question, completion and contexts",
        )
    check_sums(run, "config.toml", "rollouts.jsonl", "critiques.jsonl")
    config = load_config(str(run / "config.toml"), settings)
    config = changed(config, {"model.path": model or config.model.path, "model.lora": None}, "signal")
    config = as_before(config, out)
    names = _checked_names(contexts, config)
    num = num or 256
    problems = {p.problem_id: p for p in load_set(config.data, "train").problems}
    rollouts = stored_rollouts(run, problems, num)
    if not rollouts:
        raise ConfigError("the run holds no rollouts", where=str(run / "rollouts.jsonl"))
    RunFolder.check(out, config, resume=True, kind="analysis", extra=RUN_FILES)
    find_model(config.model.path)
    from stepalign.token_signal.analyse import attempts_under  # loads torch
    from stepalign.verbs.signal.folder import write_signal_folder

    if any("tests" in designs.find_design(name).needs for name in names):
        rollouts = _with_details(config, rollouts)
    knows = has_program(config.data, config.critic)
    asked = [name for name in names if knows or designs.find_design(name).form == "own"]
    with closing(open_session(config, listener)) as session:
        more = more_critiques(config, None, rollouts, asked, session=session)
        attempts, left_out = attempts_under(rollouts, names, more)
        for name, reasons in left_out.items():
            say_left_out(listener, name, reasons, len(rollouts))
        page = write_signal_folder(
            out,
            config,
            session.solver,
            session.prompts,
            attempts,
            source={"name": str(run), "contexts": list(names), "num": num},
            labels={n: designs.find_design(n).label for n in names if sum(left_out[n].values()) < len(rollouts)},
            prompts_from=str(run / "config.toml"),
            truth=find_truth(config, session.solver),
            total=len(attempts),
            listener=listener,
        )
        if counterfactual:
            from stepalign.verbs.signal.what_if import add_what_ifs

            with RunFolder(out, config, resume=True, kind="analysis", extra=RUN_FILES):
                shown = [name for name in names if designs.find_design(name).has_context]
                add_what_ifs(out, session, [rollout for rollout, _ in rollouts], shown, counterfactual, listener)
        return page


def _with_details(
    config: Config, rollouts: list[tuple[Rollout, Critique | None]]
) -> list[tuple[Rollout, Critique | None]]:
    """Rollouts stored without the details of their grades, as older runs did, are graded again."""
    if not find_domain(config.data).has_details or all(rollout.attempt.grade.detail for rollout, _ in rollouts):
        return rollouts
    with make_grader(config.data) as grader:
        attempts = [rollout.attempt for rollout, _ in rollouts]
        grades = grader.grade_many([one.text for one in attempts], [one.problem.answer for one in attempts])
    return [
        (replace(rollout, attempt=replace(rollout.attempt, grade=grade)), critique)
        for (rollout, critique), grade in zip(rollouts, grades, strict=True)
    ]


def _checked_names(contexts: tuple[str, ...], config: Config) -> tuple[str, ...]:
    for name in contexts:
        try:
            designs.find_design(name)
        except ConfigError as error:
            raise ConfigError(error.what, where="--contexts", hint=error.hint) from None
    return tuple(dict.fromkeys(contexts or config.signal.contexts))


def stored_rollouts(run: Path, problems: dict[str, Problem], num: int) -> list[tuple[Rollout, Critique | None]]:
    """The first rollouts of a run with their critiques. Rollouts of problems that are gone are an error."""
    critiques = {row["rollout_id"]: critique_from_json(row) for row in read_json_lines(run / "critiques.jsonl")}
    rollouts = islice(read_rollouts(run / "rollouts.jsonl", problems), num)
    return [(rollout, critiques.get(rollout.rollout_id)) for rollout in rollouts]
