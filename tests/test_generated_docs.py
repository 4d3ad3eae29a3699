"""Generated pages say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stepalign.config.schema import all_keys

ROOT = Path(__file__).parents[1]


def test_the_generated_parts_are_up_to_date() -> None:
    script = ROOT / "dev" / "generate_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_key_of_a_recipe_has_its_row() -> None:
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    keys = set(all_keys())
    sections = {key.rpartition(".")[0] for key in keys}
    missing = {key for key in keys if f"| `{key}` |" not in page and f"## `[{key}]`" not in page} - {"compare.arms"}
    assert not missing - sections


def test_every_command_shown_by_the_help_has_its_row() -> None:
    shown = subprocess.run([sys.executable, "-m", "stepalign", "--help"], capture_output=True, text=True, check=True)
    listed = shown.stdout.partition("Commands")[2].splitlines()[1:]
    names = [line.split()[0].strip("│ ") or line.split()[1] for line in listed if line.strip("│╰─╯ ")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(names) > 8
    assert all(f"| `{name}" in readme for name in names), names
