"""The package as others get it: its pins, its extras, its versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import stepalign

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and line.lstrip()[0] != "#"]
    return {canonical(one.name): next(iter(one.specifier)).version for one in found}


def test_the_lock_file_keeps_to_the_constraints_and_to_the_ranges() -> None:
    locked, constrained = pins("requirements.lock"), pins("constraints.txt")
    assert {name: locked[name] for name in constrained} == constrained
    groups = {"core": PROJECT["dependencies"], **EXTRAS}
    del groups["verifiers"]  # it asks for an older openai than the tests
    for group, needs in groups.items():
        for need in map(Requirement, needs):
            assert need.specifier.contains(locked[canonical(need.name)]), f"{group}: {need}"


def test_every_install_line_in_a_message_names_an_extra_that_is_there() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = {name.strip() for names in re.findall(r"stepalign\[([\w, ]+)\]", text) for name in names.split(",")}
    assert {"data", "track", "paper"} <= named <= EXTRAS.keys()


def test_one_version_everywhere_and_the_package_is_typed() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["version"] == stepalign.__version__
    assert f"\nversion: {stepalign.__version__}\n" in citation
    assert (ROOT / "src" / "stepalign" / "py.typed").exists()
