from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One real browser for all browser tests; they skip, visibly, on a machine without one."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("no chromium binary on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path: Path, results: dict[str, Any], signal: dict[str, Any]) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "signal.json").write_text(json.dumps(signal), encoding="utf-8")
    return tmp_path
