"""The requests of the lab's page. A request is one line of a file that ``stepalign signal`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from stepalign.errors import ConfigError
from stepalign.feedback.prompts import packaged_templates
from stepalign.outside import parse_json

MAX_CONTEXTS = 4
MAX_CONTINUATIONS = 64
MAX_CHARACTERS = 200_000
"""Characters of one text; a page that sends more is refused before anything is tokenised."""

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Word = Annotated[str, StringConstraints(max_length=200)]


class LabRequest(BaseModel):
    """A question, an attempt at it, and one to four texts for the self-teacher, by name."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    question: Text
    completion: Text
    contexts: dict[Name, Text] = Field(min_length=1, max_length=MAX_CONTEXTS)
    answer: Text = ""
    """The expected answer, where it is known; designs and the grade need it."""
    reference: Text = ""
    """A reference solution, for the design of that name."""
    verdict: Literal["correct", "incorrect", "undecided"] = "undecided"
    case: Word = ""
    wrong_step: Word | None = None
    wrong_text: Text | None = None
    """The label of the attempt: the label of its first wrong step, or the wrong passage itself."""
    system: Text = ""
    chat_options: dict[str, Any] = Field(default_factory=dict)
    prompts: dict[Literal["student", "self_teacher"], Text] = Field(default_factory=dict)
    """Prompts of its own, packaged ones by name or Jinja text; never a file, for a page asks for them."""
    temperature: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    """Divides both sides' logits; the recipe's sampling temperature where none is given."""

    @field_validator("prompts")
    @classmethod
    def _no_files(cls, prompts: dict[str, str]) -> dict[str, str]:
        for template in prompts.values():
            if not {template, f"{template}.jinja"} & packaged_templates().keys() and "{{" not in template:
                raise ValueError("name a packaged template, or write one")
        return prompts


def read_request(value: Any, *, where: str = "request") -> LabRequest:
    """A request from parsed JSON.

    Raises:
        ConfigError: a missing or mistyped field, too many contexts, or a text that is too long.
    """
    if isinstance(value, dict) and isinstance(value.get("temperature"), int):
        value = {**value, "temperature": float(value["temperature"])}
    try:
        return LabRequest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the request"
        raise ConfigError(f"{field[:120]}: {first['msg']}", where=where) from None


def read_spike(body: dict[str, Any]) -> tuple[int, int]:
    """(position of a token, continuations of each of its versions). Raises ConfigError for anything else."""
    token, count = body.get("token"), body.get("count")
    if type(token) is not int or token < 0:
        raise ConfigError("token should be the position of one", where="request")
    if type(count) is not int or not 1 <= count <= MAX_CONTINUATIONS:
        raise ConfigError(f"count should be 1 to {MAX_CONTINUATIONS} continuations", where="request")
    return token, count


def load_examples(folder: Path) -> tuple[list[tuple[str, LabRequest]], list[str]]:
    """(name, request) of every line of the ``*.jsonl`` files in a folder, and why other lines cannot be scored."""
    found: list[tuple[str, LabRequest]] = []
    left_out: list[str] = []
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line)
                request = read_request(row, where=f"{path}:{number}")
            except (ValueError, ConfigError) as error:
                left_out.append(str(error).replace("\n", " "))
                continue
            name = str(row.get("name") or row.get("id") or path.stem)
            found.append((name if len(lines) == 1 or name != path.stem else f"{name} {number}", request))
    return found, left_out
