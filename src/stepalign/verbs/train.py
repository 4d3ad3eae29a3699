"""``stepalign train``: one condition, from its recipe to its last weights."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepalign.build import check_critic, follow_rank_0, make_critic, make_run, open_session
from stepalign.config import Config, Settings, changed, load_config, parse_settings
from stepalign.critics import RUN_FILES
from stepalign.critics.budget import cost, prices_of
from stepalign.events import Listener
from stepalign.feedback.designs import find_condition
from stepalign.stopping import StopRequest
from stepalign.storage.files import write_json
from stepalign.storage.run_folder import RunFolder, as_before
from stepalign.training.ranks import this_rank
from stepalign.verbs.checks import run_checks
from stepalign.verbs.inputs import Inputs
from stepalign.verbs.progress import for_python

if TYPE_CHECKING:
    from stepalign.models.load import Solver
    from stepalign.training.progress import Progress


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run: its folder, and what it has done."""

    folder: Path
    steps: int
    rollouts: int
    tokens: int
    """Completion tokens sampled for training."""
    warnings: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The last weights, in Hugging Face layout."""
        return self.folder / "final"


def train(
    recipe: str | Path,
    overrides: Settings | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainedRun:
    """Train a recipe, as ``stepalign train`` does.

    Args:
        recipe: a file, or the name of a shipped recipe.
        overrides: dotted keys and their values, such as {"training.max_steps": 10}, or ``key.path=value`` words.
        out: the run folder; docs/formats.md says what it holds afterwards.
        resume: continue from the newest checkpoint in it.
        listener: receives the progress; without one it is printed. ``sa.silent`` shows nothing.

    Raises:
        ConfigError, EndpointError, LockedError: as ``train_config``.
    """
    with for_python(listener) as heard:
        config = changed(load_config(recipe), parse_settings(overrides or {}), "overrides")
        done = train_config(config, Path(out), resume=resume, listener=heard, stop=StopRequest())
    return TrainedRun(Path(out), done.step, done.num_rollouts, done.num_tokens, tuple(done.warnings))


def train_config(config: Config, out: Path, *, resume: bool, listener: Listener, stop: StopRequest) -> Progress:
    """Run one condition. On the ranks above 0 of torchrun: do this rank's part of the learner's work, and exit.

    Arguments as for ``train``; when ``stop`` is asked, the run saves itself and raises Interrupted.

    Raises:
        ConfigError, EndpointError, LockedError: see the checks and the run folder; nothing is half-written.
        BudgetSpentError, Interrupted: the checkpoint is on disk.
    """
    if this_rank():
        follow_rank_0(config)
        raise SystemExit(0)
    config = as_before(config, out)
    inputs = Inputs(config, listener)
    run_checks(inputs, loads_model=False)
    RunFolder.check(out, config, resume=resume, extra=RUN_FILES)
    designs = [find_condition(config.condition).design]
    check_critic(config, designs, out)
    run_checks(inputs, loads_model=True)
    with (
        closing(open_session(config, listener, out)) as session,
        RunFolder(out, config, resume=resume, extra=RUN_FILES) as folder,
    ):
        critic = make_critic(config, out, designs, listener, out, session)
        with closing(critic) if critic else nullcontext():
            run = make_run(session, inputs.problems, critic, folder, listener, stop)
            run.go()
        spent = getattr(getattr(critic, "ledger", None), "cost", None)
        write_json(out / "summary.json", run_summary(config, session.solver, run.progress, spent))
    return run.progress


def run_summary(config: Config, solver: Solver, progress: Progress, spent: float | None) -> dict[str, Any]:
    """summary.json, which a comparison reads; see docs/formats.md."""
    from stepalign.models.load import dtype_of

    counted = ("calls", "malformed", "failed", "cached", "attempts", "retries", "prompt_tokens", "completion_tokens")
    critic: dict[str, Any] = {name: progress.critic.get(name, 0) for name in counted}
    prices = prices_of(config.critic.prices, "")
    critic["cost"] = cost(prices, critic["prompt_tokens"], critic["completion_tokens"]) if prices else spent
    critic["findings"] = dict(progress.findings) if config.critic.judged else None
    return {
        "seed": config.training.seed,
        "device": str(solver.device),
        "dtype": dtype_of(solver),
        "steps": progress.step,
        "rollouts": progress.num_rollouts,
        "completion_tokens": progress.num_tokens,
        "seconds": progress.seconds,
        "seconds_by_phase": progress.seconds_by_phase,
        "critic": critic,
        "masked": dict(progress.masked),
        "warnings": progress.warnings,
        "roll_backs": progress.roll_backs,
        "peak_memory_bytes": _peak_memory(),
    }


def _peak_memory() -> int:
    """Resident bytes at most. ru_maxrss, the other count, goes on from that of the process which started this one."""
    with suppress(OSError):
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
