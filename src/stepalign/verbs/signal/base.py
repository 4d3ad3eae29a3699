"""The signal of a comparison's untrained solver: what each context would teach it, before any training.

A comparison does this in a process of its own, with the hidden command ``stepalign signal-of-base``.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from stepalign.build import find_truth, open_session
from stepalign.config import Config
from stepalign.domains.table import load_set
from stepalign.events import Listener, line, silent
from stepalign.rollouts.order import derive_seed
from stepalign.storage.files import write_json
from stepalign.token_signal.analyse import analyse
from stepalign.verbs.signal.collect import collect_for_signal, more_critiques
from stepalign.verbs.signal.folder import another_teacher


def write_signal(config: Config, out: Path, listener: Listener = silent) -> Path:
    """Roll out the untrained solver on training problems and analyse what each context would teach."""
    section = config.signal
    with closing(open_session(config, listener)) as session:
        problems = load_set(config.data, "train").problems
        triples = collect_for_signal(session, problems, out, seed=derive_seed(config.training.seed, "signal"))
        if len(triples) < (asked := section.num_rollouts):
            listener(line(f"the signal is of {len(triples)} rollouts, not {asked}: there are {len(problems)} problems"))
        analysis = analyse(
            session.solver,
            session.prompts,
            triples,
            section.contexts,
            temperature=config.sampling.temperature,
            num_shown=section.num_shown,
            top_k=section.top_k,
            model_name=config.model.path,
            truth=find_truth(config, session.solver),
            more_critiques=more_critiques(config, out, triples, section.contexts, session.rules, session),
            listener=listener,
        )
    file = out / "signal.json"
    write_json(file, {**analysis, **another_teacher(config, listener)}, indent=None)
    return file
