"""Write the generated parts of the documents again: the table of commands and the table of keys.

    python dev/generate_docs.py            # write
    python dev/generate_docs.py --check    # exit with 1 where a file would change

The commands come from the command line itself, the keys from the docstrings of ``config/schema.py``.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer.main
from pydantic import BaseModel

from stepalign.cli import app
from stepalign.config import Config, schema

ROOT = Path(__file__).resolve().parents[1]


def command_table() -> str:
    """One row a command: its arguments, its required options, and the first sentence of its help."""
    group: Any = typer.main.get_command(app)
    rows = ["| command | purpose |", "| --- | --- |"]
    for name, command in group.commands.items():
        if command.hidden:
            continue
        words = [name]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                word = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
                words.append(word if parameter.required else f"[{word}]")
            elif parameter.required:
                words += [parameter.opts[0], parameter.opts[0].removeprefix("--").upper()]
        sentence = (command.help or "").split("\n\n")[0].replace("\n", " ").strip()
        rows.append(f"| `{' '.join(words)}` | {sentence} |")
    return "\n".join(rows)


def key_tables() -> str:
    """A table for each section of a recipe: key, kind, default, meaning."""
    parts = [_table("", Config)]
    parts += [f"## `[{prefix}]`\n\n{_summary(kind)}\n\n{_table(prefix, kind)}" for prefix, kind in _sections(Config)]
    return "\n\n".join(parts)


def _sections(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in kind.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            yield f"{prefix}{name}", section
            yield from _sections(section, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section behind an annotation, whether it is optional or repeated."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _summary(kind: type[BaseModel]) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _table(prefix: str, kind: type[BaseModel]) -> str:
    meanings = _field_docstrings(kind)
    rows = ["| key | kind | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in kind.model_fields.items():
        if _section_of(field.annotation) is not None and not isinstance(field.default, tuple):
            continue
        default = "required" if field.is_required() else _toml(field.get_default(call_default_factory=True))
        shown = _kind(kind, name)
        rows.append(f"| `{prefix + '.' if prefix else ''}{name}` | {shown} | {default} | {meanings.get(name, '')} |")
    return "\n".join(rows)


def _kind(kind: type[BaseModel], name: str) -> str:
    if examples := kind.model_fields[name].examples:  # a table outside the schema has the names
        return f"`{', '.join(map(_quoted, examples))}`"
    written = inspect.get_annotations(kind)[name]
    text = str(getattr(schema, written, written)) if isinstance(written, str) else str(written)
    text = re.sub(r"typing\.|pydantic\.", "", text)
    choices = re.fullmatch(r"Literal\[(.*)\](?: \| None)?", text)
    if choices:
        text = choices.group(1).replace("'", '"')
    return f"`{text}`".replace("|", "\\|")


def _quoted(text: str) -> str:
    return f'"{text}"'


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    return f"`{value}`"


def _field_docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """Field -> the string below it; fields in a row without one share the next string."""
    tree = ast.parse(inspect.getsource(kind))
    found: dict[str, str] = {}
    waiting: list[str] = []
    for node in tree.body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and waiting:
            found[waiting.pop()] = " ".join(str(node.value.value).split()).replace("|", "\\|")
            waiting = []
        else:
            waiting = []
    return found


def render() -> dict[Path, str]:
    """File -> its text as it should be."""
    keys = ROOT / "docs" / "keys.md"
    readme = ROOT / "README.md"
    return {
        readme: _between(readme.read_text(encoding="utf-8"), "commands", command_table()),
        keys: _between(keys.read_text(encoding="utf-8"), "keys", key_tables()),
    }


def _between(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    if not (mark and closing):
        raise SystemExit(f"no place for {name}: a line {begin} and a line {end} are missing")
    return f"{before}{begin}\n{body}\n{end}{after}"


def main() -> None:
    changed = [path for path, text in render().items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in changed:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`")
        sys.exit(bool(changed))
    for path, text in render().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
