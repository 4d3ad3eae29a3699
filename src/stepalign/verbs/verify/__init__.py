"""``stepalign verify``: every reported number once more, from the stored samples and the stored weights.

Texts are graded anew, metrics are recomputed from the rows they came from, and a sample of rollouts is scored again
under the weights that drew it. Files are held against the checksums that their last command left. Nothing in the folder
is changed.
"""

from __future__ import annotations

from pathlib import Path

from stepalign.errors import ConfigError
from stepalign.events import Listener, silent
from stepalign.storage.files import MANIFEST, SUPERSEDED, damaged_file, is_sealed, step_folders
from stepalign.storage.sums import SUMS, damaged_since, read_sums, short_of_checkpoint
from stepalign.verbs.verify.others import (
    verify_comparison,
    verify_critiques,
    verify_evaluation,
    verify_selection,
    verify_signal,
)
from stepalign.verbs.verify.run import verify_run
from stepalign.verbs.verify.verified import Verified

KINDS = {
    "rollouts.jsonl": verify_run,
    "evaluations.jsonl": verify_run,
    "signal.jsonl": verify_signal,
    "critiques.jsonl": verify_critiques,
    "samples.jsonl": verify_selection,
}
"""A file that only folders of one kind have -> its check."""


def verify(folder: str | Path, *, num: int = 32, listener: Listener = silent) -> Verified:
    """Recompute the numbers of a run, a comparison, a selection, critiques, a signal, or an evaluation (its file).

    Args:
        num: rollouts whose tokens are scored again, for every state of the weights that is stored.

    Raises:
        ConfigError: nothing here that a command has written.
    """
    folder, found = Path(folder), Verified()
    _hold_against_checksums(folder, found)
    if folder.is_file() and folder.suffix == ".json":
        verify_evaluation(folder, found)
    elif (folder / "arms").is_dir():
        verify_comparison(folder, found, num, listener)
    else:
        for name, check in KINDS.items():
            if (folder / name).exists():
                check(folder, found, num, listener)
                break
        else:
            if not found.different:  # else its records are among the files that are missing
                raise ConfigError(
                    "there is nothing to verify here",
                    where=str(folder),
                    hint="give the --out of train, compare, select, critique, signal or evaluate",
                )
    return found


def _hold_against_checksums(folder: Path, found: Verified) -> None:
    """Files as they are against those that a command left: a changed bit may be smaller than a tolerance."""
    for place in sorted({file.parent for name in (SUMS, MANIFEST) for file in folder.rglob(name)}):
        if SUPERSEDED in place.parts:
            continue
        name = place.relative_to(folder)
        if is_sealed(place):
            found.checked["checksums"] += 1
            found.different += [f"{name / one} is not what the manifest says" for one in [damaged_file(place)] if one]
        else:
            found.checked["checksums"] += len(read_sums(place))
            found.different += [f"{name / one} {what}" for one, what in damaged_since(place)]
    for run in sorted({place.parent for place in folder.rglob("checkpoints")}):
        name = run.relative_to(folder)
        found.different += [f"{name / one} {what}" for one, what in short_of_checkpoint(run)]
        for place in step_folders(run / "checkpoints"):
            if not is_sealed(place):
                found.different.append(f"{place.relative_to(folder) / MANIFEST} is missing")
