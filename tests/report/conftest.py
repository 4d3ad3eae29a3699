from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_fixtures as fixtures


@pytest.fixture(scope="session")
def results() -> dict[str, Any]:
    return fixtures.make_results()


@pytest.fixture(scope="session")
def signal() -> dict[str, Any]:
    return fixtures.make_signal(contexts=3)


@pytest.fixture
def folder(tmp_path: Path, results: dict[str, Any], signal: dict[str, Any]) -> Path:
    return fixtures.fill(tmp_path, results, signal)
