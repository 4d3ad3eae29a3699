"""``stepalign signal RUN``: the rollouts that a run has kept, scored again under any contexts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepalign.config import changed, load_config
from stepalign.errors import ConfigError
from stepalign.feedback import designs
from stepalign.records import Completion, Critique, Problem, Rollout
from stepalign.report.page import write_token_page
from stepalign.signal.analyse import analyse
from stepalign.solver.model import EMBEDDED
from stepalign.training.run_folder import finite, read_json_lines, write_atomically
from stepalign.training.session import arithmetic_probe, load_set, more_critiques, open_session


def analyse_run(
    run: Path, out: Path, *, contexts: tuple[str, ...], model: str, num: int, settings: Iterable[str]
) -> Path:
    """Write OUT/signal.json and OUT/signal.html from a run's first ``num`` rollouts.

    Args:
        contexts: names of context designs; the recipe's ``signal.contexts`` when empty. Designs that need a critique
            use the stored ones; a programmatic critic writes those that are not there.
        model: scores the rollouts; the run's untrained solver when empty.

    Raises:
        ConfigError: not a run folder, no rollouts, an unknown design, or no critiques where a design needs them.
    """
    if not (run / "config.toml").exists():
        raise ConfigError(
            "not a run folder: config.toml is missing", where=str(run), hint="give the --out of a training"
        )
    config = load_config(str(run / "config.toml"), settings)
    if model:
        config = changed(config, {"model.path": model}, "signal")
    names = contexts or config.signal.contexts
    problems = {p.problem_id: p for p in load_set(config, "train").problems}
    rollouts = stored_rollouts(run, problems, num)
    if not rollouts:
        raise ConfigError("the run holds no rollouts", where=str(run / "rollouts.jsonl"))
    more = more_critiques(config, None, rollouts, names) if config.critic.kind == "programmatic" else []
    forms = {critique.form for critique in (*more, *(c for _, _, c in rollouts if c is not None))}
    missing = [n for n in names if (design := designs.find_design(n)).needs_critic and design.form not in forms]
    if missing:
        form = designs.find_design(missing[0]).form
        raise ConfigError(
            f'the context {missing[0]} needs critiques of the form "{form}", and the run has none',
            where=str(run / "critiques.jsonl"),
            hint="analyse a run of a condition with a critic, or leave that context out with --contexts",
        )
    session = open_session(config)
    try:
        analysis = analyse(
            session.solver,
            session.prompts,
            rollouts,
            names,
            temperature=config.sampling.temperature,
            num_shown=config.signal.num_shown,
            top_k=config.signal.top_k,
            more_critiques=more,
            model_name=config.model.path,
            wrong_result=arithmetic_probe(session.solver) if config.data.train == EMBEDDED else None,
        )
    finally:
        session.close()
    out.mkdir(parents=True, exist_ok=True)
    analysis = finite(analysis)
    write_atomically(out / "signal.json", json.dumps(analysis, ensure_ascii=False) + "\n")
    write_token_page(analysis, out / "signal.html")
    return out / "signal.html"


def stored_rollouts(
    run: Path, problems: dict[str, Problem], num: int
) -> list[tuple[Problem, Rollout, Critique | None]]:
    """The first rollouts of a run with their critiques. Rollouts of problems that are gone are an error."""
    critiques: dict[str, Critique] = {}
    for row in read_json_lines(run / "critiques.jsonl"):
        row.pop("record_step")
        critiques[row["rollout_id"]] = Critique(**row)
    found = []
    for row in read_json_lines(run / "rollouts.jsonl"):
        if len(found) == num:
            break
        rollout = _rollout(row)
        if rollout.problem_id not in problems:
            raise ConfigError(
                f"rollout {rollout.rollout_id} belongs to a problem that the recipe's training set no longer has",
                where=str(run / "rollouts.jsonl"),
            )
        found.append((problems[rollout.problem_id], rollout, critiques.get(rollout.rollout_id)))
    return found


def _rollout(row: dict[str, Any]) -> Rollout:
    row.pop("record_step")
    completion = row.pop("completion")
    reward = row.pop("reward")
    return Rollout(
        **row,
        reward=float("nan") if reward is None else reward,
        completion=Completion(
            ids=tuple(completion["ids"]),
            log_probs=tuple(float("nan") if p is None else p for p in completion["log_probs"]),
            finish_reason=completion["finish_reason"],
            policy_version=completion["policy_version"],
        ),
    )
