"""Waiting in tests: for a condition, not for a time. A busy machine is slow, and slowness is no fault of the code."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 1700.0
"""Seconds after which a wait fails, a little before pytest ends the test."""


def wait_until(true: Callable[[], Any], process: subprocess.Popen[Any] | None = None, log: Path | None = None) -> None:
    """Until a condition is true. Fails when the process that should make it true has ended before."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if process is not None and process.poll() is not None:
            said = log.read_text() if log else process.communicate()[1] if process.stderr else ""
            assert true(), f"ended with {process.returncode}: {said}"
            return
        assert time.monotonic() < deadline, log.read_text() if log else "waited in vain"
        time.sleep(0.02)
