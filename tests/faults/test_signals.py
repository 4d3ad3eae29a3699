"""A signal in the middle of a command: it leaves in time, with the code of the signal and one line that goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from warm import launcher

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_trials.signals import PHASES, is_well, stopped


@pytest.mark.slow
def test_every_command_leaves_within_ten_seconds_of_a_signal() -> None:
    """All at once. The long form has more phases: benchmarks/faults.py."""
    names = [name for name in PHASES if PHASES[name].is_short]
    numbers = {name: (signal.SIGTERM, signal.SIGINT)[index % 2] for index, name in enumerate(names)}
    with ThreadPoolExecutor(len(numbers)) as threads:
        ends = threads.map(lambda name: stopped(PHASES[name], numbers[name], launcher=json.dumps(launcher())), numbers)
        found = dict(zip(numbers, ends, strict=True))
    assert not {name: row for name, row in found.items() if not is_well(row, numbers[name])}
    goes_on = {name for name, row in found.items() if "; continue with: stepalign " in row["said"][0]}
    assert goes_on == set(found)


def test_a_signal_before_the_command_has_begun_leaves_in_the_same_way() -> None:
    code = (
        "import os, sys, threading\nfrom stepalign.cli import main\nstart = threading.Thread.start\n"
        "threading.Thread.start = lambda self: (start(self), os.kill(os.getpid(), 15))\n"
        "sys.argv = ['stepalign', '--version']\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr == "stopped (SIGTERM): nothing is left half done\n"
