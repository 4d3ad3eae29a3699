"""Generated pages say what the code says."""

from __future__ import annotations

import re
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


def test_every_document_has_its_place_on_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/results").glob("*.md"),
        *(ROOT / "docs/notebooks").glob("*.ipynb"),
    ]
    assert len(pages) > 20
    assert not [page.name for page in pages if f": {page.relative_to(ROOT)}" not in navigation]


def test_the_page_about_one_step_quotes_the_example() -> None:
    example = " ".join((ROOT / "examples/one_step.py").read_text(encoding="utf-8").split())
    page = (ROOT / "docs/one_step.md").read_text(encoding="utf-8")
    quotes = [" ".join(quote.split()) for quote in re.findall(r"```python\n(.*?)```", page, re.S)]
    assert len(quotes) > 6
    assert not [quote for quote in quotes if quote not in example]
