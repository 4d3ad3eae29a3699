"""Provenance of the numbers of a signal page: model, weights, prompts, source, in the words of its signal.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stepalign.report.text import MISSING, decimal
from stepalign.storage.fingerprint import sha256

Rows = list[tuple[str, str]]


def provenance_rows(signal: Mapping[str, Any], version: str) -> Rows:
    """(name, value) of every fact the file states; only model and temperature are listed without one.

    Prompts are named by the first 12 digits of their SHA-256, so that two pages are easy to compare.
    """
    prompts, source = signal.get("prompts") or {}, signal.get("source") or {}
    options = [prompts.get(f"{side}_chat_options") or {} for side in ("student", "teacher")]
    if options[0] != options[1]:
        options = [dict(zip(("student", "teacher"), options, strict=True))]
    rows = {
        "Solver": signal.get("model") or MISSING,
        "Weights": signal.get("weights"),
        "Source": " · ".join(str(source[key]) for key in ("name", "sha256") if source.get(key)),
        "Temperature": decimal(signal.get("temperature"), 2),
        "Definition": signal.get("definition"),
        "Prompts from": prompts.get("from"),
        "Student prompt": _hashed(prompts.get("student") or ""),
        "Self-teacher prompt": _hashed(prompts.get("self_teacher") or ""),
        "System message": prompts.get("system"),
        "Chat options": json.dumps(options[0]) if options[0] else "",
        "Date": signal.get("date"),
        "Scored by": signal.get("version"),
        "Page by": f"stepalign {version}",
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def example_prompts(signal: Mapping[str, Any]) -> Rows:
    """(title, text) of the prompts that one rollout was scored behind, where the file holds them."""
    example = (signal.get("prompts") or {}).get("example") or {}
    titles = {"student": "Prompt of the student", "self_teacher": "Prompt of the self-teacher"}
    return [(title, example[key]) for key, title in titles.items() if example.get(key)]


def _hashed(template: str) -> str:
    """The hash of a template, with the template itself where it fits on the line."""
    if not template:
        return ""
    digest = sha256(template)[:12]
    return f"{digest} {template}" if len(template) <= 80 and "\n" not in template else digest
