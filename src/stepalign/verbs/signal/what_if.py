"""``stepalign signal RUN --counterfactual K``: continuations at the strongest tokens, added to the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepalign.build import Session
from stepalign.errors import ConfigError
from stepalign.events import Listener, progress
from stepalign.records import Rollout
from stepalign.report.page import write_token_page
from stepalign.rollouts.order import derive_seed
from stepalign.storage.files import finite, read_json, write_json
from stepalign.token_signal.counterfactual import SPIKES, Spike, agreement, resample, strongest
from stepalign.token_signal.files import AGAIN, PAGE_DATA


def add_what_ifs(
    out: Path, session: Session, rollouts: Sequence[Rollout], names: Sequence[str], count: int, listener: Listener
) -> None:
    """Resample ``count`` continuations of both versions of each strong token, and write the page of ``out`` again.

    Raises:
        ConfigError: the analysis kept no alternatives, which name the self-teacher's token.
    """
    if not session.config.signal.top_k:
        raise ConfigError(
            "no alternatives are kept, and the self-teacher's token is one of them",
            where="signal.top_k = 0",
            hint="--set signal.top_k=5, and another --out",
        )
    by_id = {rollout.rollout_id: rollout for rollout in rollouts}
    found: dict[str, Any] = {}
    for at, name in enumerate(names):
        listener(progress("what if", at, len(names)))
        spikes = sorted(_spikes(out, session, by_id, name), key=lambda spike: spike.log_ratio)[:SPIKES]
        rows = resample(
            session.maker,
            spikes,
            num_samples=count,
            temperature=session.config.sampling.temperature,
            max_tokens=session.config.sampling.max_completion_length,
            seed=derive_seed(session.config.training.seed, "what if"),
            end_ids=session.solver.end_ids,
        )
        found[name] = {**agreement(rows), "rows": rows}
    signal = {**read_json(out / PAGE_DATA, hint=AGAIN), "counterfactual": finite(found)}
    write_json(out / PAGE_DATA, signal, indent=None)
    write_token_page(signal, out / "index.html")


def _spikes(out: Path, session: Session, rollouts: Mapping[str, Rollout], name: str) -> Iterator[Spike]:
    """The most suppressed token of each rollout under a context, from the arrays of an analysis."""
    from safetensors import safe_open

    for file in sorted((out / "arrays").glob("*.safetensors")):
        with safe_open(file, framework="numpy") as arrays:
            if f"{name}/top_ids" not in arrays.keys():  # noqa: SIM118 - no mapping
                continue
            ids = json.loads((arrays.metadata() or {})["rollout_ids"])
            offsets = arrays.get_tensor("offsets")
            log_ratio, likeliest = arrays.get_tensor(f"{name}/log_ratio"), arrays.get_tensor(f"{name}/top_ids")[:, 0]
        for rollout_id, start, end in zip(ids, offsets[:-1], offsets[1:], strict=True):
            rollout, values = rollouts[rollout_id], np.nan_to_num(log_ratio[start:end])
            prompt_ids = session.prompts.student(rollout.problem)
            yield from strongest(rollout, name, prompt_ids, values, likeliest[start:end])
