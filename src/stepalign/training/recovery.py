"""The healthy past of a run: snapshots in memory, checkpoints on disk, and which of them hold a wreck."""

from __future__ import annotations

from pathlib import Path

from stepalign.config import GuardsSection
from stepalign.models.load import Solver
from stepalign.storage.files import WRECK, remove_folder, step_of, write_atomically
from stepalign.training.breaks import BREAKS, LATEST, Broke
from stepalign.training.checkpoint import Checkpoint, find_checkpoints, is_wreck, restore_weights
from stepalign.training.distributed import Team
from stepalign.training.learner import Learner
from stepalign.training.teacher import Teacher

SNAPSHOT_STEPS = 5
"""Steps between two snapshots. Every checkpoint is one, too: a resumed run goes back to where any other does."""
MOST_ROLL_BACKS = 3
"""Within two windows: the next break stops the run."""


class Past:
    """Where a run can go back to. Snapshots are made only where a guard may ask for them.

    Args:
        ahead: steps that completions are drawn early: a wreck shows so much later.
        limit: ``training.save_total_limit``.
    """

    def __init__(
        self,
        solver: Solver,
        learner: Learner | Team,
        teacher: Teacher,
        checkpoints: Path,
        guards: GuardsSection,
        *,
        ahead: int,
        limit: int | None,
    ) -> None:
        self._solver, self._learner, self._teacher, self._checkpoints = solver, learner, teacher, checkpoints
        self._ahead, self._limit, self._window = ahead, limit, guards.window
        self._makes_snapshots = "roll_back" in (guards.policy, *(getattr(guards, name) for name in BREAKS))
        self._kept: list[int] = []

    def healthy(self, broke: Broke, step: int) -> int:
        """The last step whose weights are healthy: those after it drew the first completions of the break."""
        return max(0, step - broke.length - 1 - self._ahead)

    def keep(self, step: int) -> None:
        """Make a snapshot. Of those that are old enough to be healthy one stays."""
        if not self._makes_snapshots or step in self._kept:
            return
        drop = [kept for kept in self._proven(self._kept, step)[:-1] if kept]  # the first weights stay
        self._learner.keep(step, self._teacher, drop)
        self._kept = [*(kept for kept in self._kept if kept not in drop), step]

    def back(self, broke: Broke, step: int, earlier: list[int]) -> int | None:
        """Go back to the newest healthy snapshot or checkpoint, and return its step.

        A process that was resumed in the middle of a break has the checkpoints and the first weights alone. None where
        ``earlier``, the steps of roll-backs so far, has too many of late.
        """
        if sum(step - one <= 2 * self._window for one in earlier) >= MOST_ROLL_BACKS:
            return None
        healthy = self.healthy(broke, step)
        found = [kept for kept in self._kept if kept <= healthy]
        saved = [f for f in find_checkpoints(self._checkpoints) if step_of(f) <= healthy and not is_wreck(f)]
        self._learner.back(found[-1], self._teacher)
        self._kept = found
        if saved and step_of(saved[-1]) > found[-1]:
            self.restore(Checkpoint(saved[-1], {}))
            return step_of(saved[-1])
        return found[-1]

    def restore(self, found: Checkpoint) -> None:
        """Weights, optimizer and self-teacher of a checkpoint."""
        restore_weights(self._solver, found.weights)
        self._learner.read(found, self._teacher)

    def mark_wrecks(self, broke: Broke, step: int) -> None:
        """Mark the checkpoints of the break: a resumed run passes them over, and none displaces a healthy one."""
        for folder in find_checkpoints(self._checkpoints):
            if step_of(folder) > self.healthy(broke, step):
                write_atomically(folder / WRECK, f"step {step}: {broke.sentence}\n")

    def last_checkpoint(self) -> str:
        """The name of the newest healthy checkpoint, or ""."""
        return next((f.name for f in reversed(find_checkpoints(self._checkpoints)) if not is_wreck(f)), "")

    def thin(self, step: int, *, ended: bool) -> None:
        """Remove the oldest checkpoints beyond the limit; of a run that goes on one that is proven healthy stays."""
        if not self._limit:
            return
        found = find_checkpoints(self._checkpoints)
        whole = [folder for folder in found if not is_wreck(folder)]
        steps = list(map(step_of, whole))
        proven = [] if ended else self._proven(steps, step)[-1:] or steps[:1]  # the first one will be proven first
        for folder in [*whole[: -self._limit], *[f for f in found if is_wreck(f)][: -self._limit]]:
            if step_of(folder) not in proven:
                remove_folder(folder)

    def _proven(self, steps: list[int], step: int) -> list[int]:
        """Those after which a break would have been seen by now."""
        return [one for one in steps if one <= step - LATEST - 1 - self._ahead]
