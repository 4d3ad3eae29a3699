"""docs/critics.md is true: its critic serves, its command says what the page says, its table holds the defaults."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from stepalign.cli import app
from stepalign.config import CriticSection, PoliciesSection
from stepalign.feedback.findings import policies

PAGE = (Path(__file__).parents[2] / "docs" / "critics.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)


def block(start: str) -> str:
    return next(text for _, text in BLOCKS if text.startswith(start))


@pytest.fixture
def address() -> Iterator[str]:
    """The page's critic, at a port that is free."""
    module = ModuleType("my_critic")
    exec(compile(block("# my_critic.py"), "my_critic.py", "exec"), vars(module))
    module.Critic.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), module.Critic)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_page_s_own_critic_passes_the_page_s_own_check(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("attempts.jsonl").write_text(block('{"question"'), encoding="utf-8")
    command = block("stepalign critique").replace("http://127.0.0.1:8123/v1", address).split()
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output
    said = block("2 of 2").strip()
    assert said in result.output + Path("checked/index.html").read_text(encoding="utf-8")
    corrected = Path("checked/critiques.jsonl").read_text(encoding="utf-8")
    assert "3 - 5 = 18" in corrected
    assert "3 - 5 = 17" not in corrected


def test_the_page_lists_every_key_and_the_policies_in_force() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert CriticSection.model_fields.keys() - {"quality"} <= named  # the programmatic critic's is in designs.md
    in_force = policies({}, served=True)
    rows = re.findall(r"^\| (`\w+`.*) \| (use|mask) \|$", PAGE, re.M)
    told = {name: policy for names, policy in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == dict(in_force)
    assert told.keys() == PoliciesSection.model_fields.keys()
