"""Column maps: which column of a row holds what, and presets for the layouts that are common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from stepalign.errors import ConfigError
from stepalign.problems.programs import prepare_program
from stepalign.problems.rows import Row, did_you_mean


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Which column of a row holds what."""

    question: str = "question"
    answer: str | None = "answer"
    """The expected answer, bare or as a worked solution that marks its answer (a box, ``####``, an answer tag).
    None: the answer is the one that ``reference`` marks."""
    reference: str | None = None
    """A worked solution. None: the answer column, where that holds one."""
    metadata: tuple[str, ...] = ()
    """Columns to keep as they are."""
    marked: bool = False
    """The answer column must mark its answer: a row without a mark is skipped, not taken for a bare answer."""
    verbatim: bool = False
    """Answer and reference are taken verbatim, however long: programs, not answers to be found in a text."""


def is_chat(value: Any) -> bool:
    """Whether a cell is a list of messages, each with a role and a content."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def _in_openai_words(messages: Any) -> Any:
    """Messages of ShareGPT's form, {"from": "human", "value": ...}, as roles and contents."""
    roles = {"human": "user", "gpt": "assistant"}
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) and "from" in m for m in messages):
        return messages
    return [{"role": roles.get(m["from"], m["from"]), "content": m.get("value")} for m in messages]


def _from_messages(row: Row) -> Row | str:
    """A chat: the last user message is the question, the assistant message after it a worked solution."""
    messages: Any = _in_openai_words(row.get("messages") or row.get("conversations"))
    if not is_chat(messages):
        return "no list of messages"
    found = read_chat(messages, "user", several=True)
    if found is None:
        return "no user message"
    asked = max(index for index, message in enumerate(messages) if message.get("role") == "user")
    return {**row, "question": found, "solution": read_chat(messages[asked + 1 :], "assistant", several=True)}


def read_chat(messages: Sequence[Mapping[str, Any]], role: str, *, several: bool = False) -> str | None:
    """The text of a chat's last message of a role; None where it has none, or has several and may not.

    A content may be text or a list of parts, of which the texts count. Messages of the system are left out: a recipe's
    ``prompts.system`` says what stands above every question.
    """
    found = [message.get("content") for message in messages if message.get("role") == role]
    if not found or (len(found) > 1 and not several):
        return None
    content = found[-1]
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else None


def _of_chat_cells(row: Row) -> Row | str:
    """Cells that hold a chat become its text: what the user asks, or the assistant's words where no user asks. An
    answer within the column of a reward model gets a column of its own."""
    read: dict[str, Any] = {}
    if isinstance(checked := row.get("reward_model"), Mapping) and "ground_truth" in checked:  # as verl has it
        read["ground_truth"] = checked["ground_truth"]
    for name, value in row.items():
        if is_chat(value) and name != "messages":
            asks = any(message.get("role") == "user" for message in value)
            read[name] = read_chat(value, "user" if asks else "assistant")
            if read[name] is None:
                return f"several turns in {name}"
    return {**row, **read} if read else row


def _from_open_math_reasoning(row: Row) -> Row | str:
    """All columns are strings, a missing pass rate is "n/a", and only some rows have a checkable answer."""
    if row.get("problem_type", "has_answer_extracted") != "has_answer_extracted":
        return f"problem_type is {row['problem_type']}"
    try:
        pass_rate = float(row.get("pass_rate_72b_tir", "n/a"))
    except (TypeError, ValueError):
        pass_rate = None
    return {**row, "pass_rate_72b_tir": pass_rate}


def _from_text(row: Row) -> Row | str:
    """A question with its rubric: prose, or a list of items."""
    rubric = row.get("rubric")
    rubric = json.dumps(rubric, ensure_ascii=False) if isinstance(rubric, list) and rubric else rubric
    if not isinstance(rubric, str) or not rubric.strip():
        return "no rubric"
    question = row.get("question") or row.get("prompt")
    return {"question": question, "rubric": rubric, "reference": str(row.get("reference") or "")}


@dataclass(frozen=True, kw_only=True)
class Preset:
    maps: tuple[ColumnMap, ...]
    """Layouts in use; the first one whose columns all exist is taken."""
    prepare: Callable[[Row], Row | str] = _of_chat_cells
    """Changes a row before it is mapped, or gives the reason to skip it."""


_SOLVED = ColumnMap(question="problem", reference="solution")
_UNSOLVED = ColumnMap(question="problem")
_MARKED = replace(_SOLVED, answer=None)
_OPEN_MATH = ColumnMap(
    question="problem",
    answer="expected_answer",
    reference="generated_solution",
    metadata=("pass_rate_72b_tir", "problem_source", "generation_model", "inference_mode"),
)
_PROGRAM = ColumnMap(answer="tests", reference="reference", verbatim=True)
PRESETS: dict[str, Preset] = {
    "stepalign": Preset(
        maps=(ColumnMap(reference="reference", metadata=("metadata",)), ColumnMap(reference="reference"), ColumnMap())
    ),
    "gsm8k": Preset(maps=(ColumnMap(marked=True),)),
    "math": Preset(
        maps=(
            replace(_SOLVED, metadata=("level", "subject")),
            _SOLVED,
            replace(_MARKED, metadata=("level", "type")),
            _MARKED,
            _UNSOLVED,
        )
    ),
    "openmathreasoning": Preset(
        maps=(
            _OPEN_MATH,
            replace(_OPEN_MATH, metadata=()),
            replace(_OPEN_MATH, reference=None, metadata=("pass_rate_72b_tir",)),
        ),
        prepare=_from_open_math_reasoning,
    ),
    "aime": Preset(
        maps=(
            _SOLVED,
            ColumnMap(question="Problem", answer="Answer", reference="Solution", metadata=("ID",)),
            _UNSOLVED,
            ColumnMap(),
            ColumnMap(question="Question", answer="Answer"),
        )
    ),
    "messages": Preset(
        maps=(ColumnMap(reference="solution"), ColumnMap(answer=None, reference="solution")), prepare=_from_messages
    ),
    "trl": Preset(
        maps=tuple(
            ColumnMap(question="prompt", answer=answer, reference=reference)
            for answer in ("answer", "solution", "ground_truth", "final_answer", None)
            for reference in ("completion", None)
            if answer or reference
        )
    ),
    "text": Preset(maps=(ColumnMap(answer="rubric", reference="reference", verbatim=True),), prepare=_from_text),
    "python": Preset(maps=(replace(_PROGRAM, metadata=("shown_answer",)), _PROGRAM), prepare=prepare_program),
}


# ---------------------------------------------------------------------------------------------------------------------
# Column maps


def as_preset(columns: str | ColumnMap | Mapping[str, Any]) -> Preset:
    if isinstance(columns, ColumnMap):
        return Preset(maps=(columns,))
    if isinstance(columns, str):
        if columns in PRESETS:
            return PRESETS[columns]
        hint = did_you_mean(columns, PRESETS, "the presets are")
        raise ConfigError(f'No column preset is called "{columns}".', where="columns", hint=hint)
    names = [entry.name for entry in fields(ColumnMap)]
    for key in columns:
        if key not in names:
            raise ConfigError(
                f'A column map has no key "{key}".', where="columns", hint=did_you_mean(key, names, "the keys are")
            )
    values = dict(columns)
    metadata = values.get("metadata", ())
    values["metadata"] = (metadata,) if isinstance(metadata, str) else tuple(metadata)
    return Preset(maps=(ColumnMap(**values),))


def choose_map(maps: Sequence[ColumnMap], row: Row, where: str) -> ColumnMap:
    """The first layout whose columns are all there.

    Raises:
        ConfigError: none fits; names the first column that the layout nearest to fitting lacks.
    """

    def lacking(columns: ColumnMap, row: Row = row) -> list[str]:
        named = (columns.question, columns.answer, columns.reference, *columns.metadata)
        return [name for name in named if name is not None and name not in row]

    def fits(preset: Preset) -> bool:
        prepared = preset.prepare(row)
        return not isinstance(prepared, str) and any(not lacking(columns, prepared) for columns in preset.maps)

    best = min(maps, key=lambda columns: len(lacking(columns)))
    for missing in lacking(best):
        fitting = [name for name, preset in PRESETS.items() if fits(preset)]
        presets = f"the preset {fitting[0]} fits them: --set data.columns={fitting[0]}; or " if fitting else ""
        raise ConfigError(
            f'There is no column "{missing}".',
            where=where,
            hint=did_you_mean(missing, [str(name) for name in row], "the columns are")
            + f'; {presets}name them with data.columns, e.g. {{question = "...", answer = "..."}}',
        )
    return best
