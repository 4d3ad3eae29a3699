"""``stepalign reproduce``: a run once more, from its own folder, and where its first bit differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from stepalign.config import Config, changed, load_config
from stepalign.critics import CACHE
from stepalign.errors import ConfigError
from stepalign.events import Event, Listener
from stepalign.stopping import Interrupted, StopRequest
from stepalign.storage.files import read_json, step_folders, step_of
from stepalign.storage.jsonl import read_json_lines

CLOCKS = ("seconds", "attempts", "cached")
"""Keys of the records that depend on the clock, and on whether a reply was in the cache."""
RECORDS = ("rollouts", "critiques", "contexts", "metrics", "evaluations")
SHOWN = 5
"""Packages of another version that are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of a file: its place, the value of the run, and that of its repetition."""

    file: str
    step: int
    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.file} differs first at step {self.step}, {self.key}: {self.before} there, {self.now} here"


def reproduce(run: Path, out: Path, *, listener: Listener, stop: StopRequest) -> list[Difference]:
    """Train ``run`` again into ``out``, as far as it came, and compare; the same command goes on where it stopped.

    Replies of a served critic come from the run's own cache; where that is there, the critic is not asked.

    Returns:
        The first difference of every file that has one, the earliest step first.

    Raises:
        ConfigError: not a run folder, or one without a step.
        Interrupted: asked to stop.
    """
    from stepalign.verbs.train import train_config

    for name in ("config.toml", "metrics.jsonl"):
        if not (run / name).exists():
            what = f"not a run folder with at least one step: {name} is missing"
            raise ConfigError(what, where=str(run), hint="give the --out of a training")
    steps = sum(1 for _ in read_json_lines(run / "metrics.jsonl"))
    config = _replayed(load_config(str(run / "config.toml")), run)
    own_stop = StopRequest()

    def until_the_same_step(event: Event) -> None:
        if event.kind == "step":
            event = replace(event, total=steps)
            if stop.asked or steps <= event.done < config.training.max_steps:
                own_stop.ask()
        listener(event)

    with suppress(Interrupted):
        train_config(config, out, resume=True, listener=until_the_same_step, stop=own_stop)
    if stop.asked:
        raise Interrupted
    return sorted(differences(run, out), key=lambda found: found.step)


def _replayed(config: Config, run: Path) -> Config:
    """The recipe of a run, with the replies that it has paid for."""
    cache = Path(config.critic.cache) if config.critic.cache else run / CACHE
    if config.critic.kind != "endpoint" or not cache.is_file():
        return config
    return changed(config, {"critic.cache": str(cache.absolute()), "critic.cache_only": True}, "reproduce")


def other_versions(run: Path, out: Path) -> list[str]:
    """What ran the two, where that differs."""
    before, now = (read_json(folder / "versions.json") for folder in (run, out))
    lines = [
        f"{key}: {before.get(key)} there, {now.get(key)} here"
        for key in ("stepalign", "revision", "python", "platform", "machine")
        if before.get(key) != now.get(key)
    ]
    old, new = (found.get("packages") or {} for found in (before, now))
    packages = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    lines += [f"{name} {old[name]} there, {new[name]} here" for name in packages[:SHOWN]]
    more = len(packages) - SHOWN
    return lines + ([f"and {more} other packages"] if more > 0 else [])


def differences(run: Path, out: Path) -> Iterator[Difference]:
    """The first difference of every record file, of the samples of every evaluation, and of all weights."""
    last = min(_last_step(run), _last_step(out))
    finished = (run / "summary.json").exists()  # else the last evaluation may be missing on either side
    for name in RECORDS:
        yield from _of_records(f"{name}.jsonl", run, out, last if finished or name != "evaluations" else last - 1)
    for file in sorted((run / "samples").glob("step-*.jsonl")):
        step = int(file.stem.split("-")[1])
        if step < last or (step == last and finished):
            yield from _of_lines(f"samples/{file.name}", run, out, step)
    stored = {f"checkpoints/{folder.name}": step_of(folder) for folder in step_folders(run / "checkpoints")}
    for folder, step in {"final": last, **stored}.items():
        if (run / folder).is_dir() and (out / folder).is_dir():
            yield from _of_weights(folder, run, out, step)


def _last_step(run: Path) -> int:
    return max((row["step"] for row in read_json_lines(run / "metrics.jsonl")), default=0)


def _of_records(name: str, run: Path, out: Path, last: int) -> Iterator[Difference]:
    before, now = ((row for row in read_json_lines(folder / name) if _step(row) <= last) for folder in (run, out))
    yield from _first(name, zip_longest(before, now, fillvalue={}))


def _of_lines(name: str, run: Path, out: Path, step: int) -> Iterator[Difference]:
    pairs = zip_longest(read_json_lines(run / name), read_json_lines(out / name), fillvalue={})
    yield from (replace(found, step=step) for found in _first(name, pairs))


def _step(row: Mapping[str, Any]) -> int:
    return row.get("record_step", row.get("step", 0))


def _first(name: str, pairs: Iterator[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[Difference]:
    for before, now in pairs:
        for key, one, other in _leaves(before, now):
            if key.partition(".")[0] not in CLOCKS:
                yield Difference(name, _step(before or now), f"{_name(before or now)}{key}", one, other)
                return


def _name(row: Mapping[str, Any]) -> str:
    named = row.get("rollout_id") or row.get("problem_id") or row.get("set")
    return f"{named}: " if named else ""


def _leaves(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, value) of everything that differs in two trees."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys() if one.keys() != other.keys() else one:
            yield from _leaves(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _leaves(*pair, f"{path}[{index}]")
    elif json.dumps(one) != json.dumps(other):
        yield path, one, other


def _of_weights(folder: str, run: Path, out: Path, step: int) -> Iterator[Difference]:
    from safetensors import safe_open

    for file in sorted((run / folder).glob("*.safetensors")):
        if not (out / folder / file.name).exists():
            yield Difference(f"{folder}/{file.name}", step, "the file", "there", "missing")
            continue
        with safe_open(file, "pt") as before, safe_open(out / folder / file.name, "pt") as now:
            for name in before.keys():  # noqa: SIM118 - no mapping
                one, other = before.get_tensor(name), now.get_tensor(name) if name in now.keys() else None  # noqa: SIM118
                if other is None:
                    yield Difference(f"{folder}/{file.name}", step, name, None, None)
                    break
                if not one.equal(other):
                    one, other, alike = one.flatten(), other.flatten(), one.shape == other.shape
                    place = int((one != other).nonzero()[0]) if alike else 0
                    where = f"{name}: first element {place}"
                    yield Difference(f"{folder}/{file.name}", step, where, float(one[place]), float(other[place]))
                    break
