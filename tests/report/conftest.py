from __future__ import annotations

import json
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
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "signal.json").write_text(json.dumps(signal), encoding="utf-8")
    return tmp_path
