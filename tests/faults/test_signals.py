"""A signal in the middle of a command: it leaves in time, with the code of the signal and one line that goes on."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_trials.signals import PHASES, is_well, stopped


@pytest.mark.slow
def test_every_command_leaves_within_ten_seconds_of_a_signal() -> None:
    """All at once, for most of their time is spent on imports. The long form has more phases: benchmarks/faults.py."""
    names = [name for name in PHASES if PHASES[name].is_short]
    numbers = {name: (signal.SIGTERM, signal.SIGINT)[index % 2] for index, name in enumerate(names)}
    with ThreadPoolExecutor(len(numbers)) as threads:
        found = dict(zip(numbers, threads.map(lambda name: stopped(PHASES[name], numbers[name]), numbers), strict=True))
    assert not {name: row for name, row in found.items() if not is_well(row, numbers[name])}
    goes_on = {name for name, row in found.items() if "; continue with: stepalign " in row["said"][0]}
    assert goes_on == set(found)
