"""Where the numbers of a signal page come from: model, weights, prompts, source, in the words of its signal.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stepalign.report.text import MISSING, decimal

Rows = list[tuple[str, str]]


def provenance_rows(signal: Mapping[str, Any], version: str) -> Rows:
    """(what, value) of every fact the file states; facts it does not state are left out, but for model and temperature.

    Prompts are named by the first 12 digits of their SHA-256, so that two pages can be told apart at a glance.
    """
    prompts = _mapping(signal.get("prompts"))
    source = _mapping(signal.get("source"))
    weights = signal.get("weights")
    rows = [
        ("Solver", str(signal.get("model") or MISSING)),
        ("Weights", str(weights) if weights else ""),
        ("Source", " · ".join(str(source[key]) for key in ("name", "sha256") if source.get(key))),
        ("Temperature", decimal(signal.get("temperature"), 2)),
        ("Definition", str(signal.get("definition") or "")),
        ("Prompts from", str(prompts.get("from") or "")),
        ("Student prompt", _hashed(prompts.get("student"))),
        ("Self-teacher prompt", _hashed(prompts.get("self_teacher"))),
        ("System message", str(prompts.get("system") or "")),
        ("Chat options", _options(prompts)),
        ("Date", str(signal.get("date") or "")),
        ("Scored by", str(signal.get("version") or "")),
        ("Page by", f"stepalign {version}"),
    ]
    return [(name, value) for name, value in rows if value]


def example_prompts(signal: Mapping[str, Any]) -> Rows:
    """(title, text) of the prompts that one rollout was scored behind, where the file holds them."""
    example = _mapping(_mapping(signal.get("prompts")).get("example"))
    return [
        (title, str(example[key]))
        for key, title in (("student", "What the student reads"), ("self_teacher", "What the self-teacher reads"))
        if example.get(key)
    ]


def _hashed(template: Any) -> str:
    if not template:
        return ""
    text = str(template)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    short = text if len(text) <= 80 and "\n" not in text else ""
    return f"{digest} {short}".strip()


def _options(prompts: Mapping[str, Any]) -> str:
    sides = {key: _mapping(prompts.get(f"{key}_chat_options")) for key in ("student", "teacher")}
    if sides["student"] == sides["teacher"]:
        return json.dumps(sides["student"]) if sides["student"] else ""
    return json.dumps(sides)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
