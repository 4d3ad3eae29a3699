"""Prompt templates: Jinja in a sandbox, with the text of problems and models passed as data only.

A template is one of this folder's by name ("scribe", "student", "self_teacher", ...), a file, or inline text with
``{{`` or ``{%``. Templates come from the user's own recipe; the sandbox keeps them from running code, not from filling
the memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stepalign.errors import ConfigError, meant
from stepalign.storage.fingerprint import sha256

_SUFFIX = ".jinja"
_UNDEFINED = re.compile(r"'([^']{1,100})' is undefined")


def packaged_templates() -> dict[str, str]:
    """Source of every template of this folder, by name with suffix."""
    folder = resources.files(__name__)
    return {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)}


@dataclass(frozen=True, slots=True)
class Template:
    """A template that is ready to render."""

    name: str
    """Packaged name, path, or "inline"."""
    source: str
    hash: str
    """Version: the first 16 hex digits of the sha256 of the source and of every template it includes."""
    variables: frozenset[str]
    """Of the template and those it includes."""
    compiled: jinja2.Template

    def render(self, **variables: Any) -> str:
        """The text, outer white space removed.

        Raises:
            ConfigError: the template asks for a variable that is not given, or fails.
        """
        return self._guarded(lambda: self.compiled.render(**variables))

    def messages(self, **variables: Any) -> list[dict[str, str]]:
        """Chat messages: the blocks ``system`` and ``user`` where the template has them, else one user message.

        Each block is rendered on its own, so that no text inside one can start another.
        """
        blocks = {role: self.compiled.blocks[role] for role in ("system", "user") if role in self.compiled.blocks}
        if not blocks:
            return [{"role": "user", "content": self.render(**variables)}]

        def text(block: Any) -> str:
            return self._guarded(lambda: "".join(block(self.compiled.new_context(variables))))

        return [{"role": role, "content": text(block)} for role, block in blocks.items()]

    def refuse_others_than(self, known: Collection[str], what: str) -> None:
        """Raise a ConfigError for a variable that ``what``, such as "a critic's prompt", does not have."""
        for name in sorted(self.variables.difference(known)):
            question = meant(name, known)
            suggestion = f"{question} " if question else ""
            raise ConfigError(
                f"the template asks for {name!r}, which {what} does not have",
                where=f"template {self.name}",
                hint=f"{suggestion}known: {', '.join(known)}",
            )

    def _guarded(self, render: Callable[[], str]) -> str:
        try:
            return render().strip()
        except jinja2.UndefinedError as error:
            name = _UNDEFINED.search(str(error))
            fault = f"the template asks for {name.group(1)!r}, which is not given here" if name else str(error)
            raise ConfigError(fault, where=f"template {self.name}", hint="correct the name, or drop it") from error
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"the template fails: {error}", where=f"template {self.name}") from error


def load_template(name_or_source: str | Path) -> Template:
    """A packaged template by name, a file by path, or inline Jinja text.

    Raises:
        ConfigError: no such template, or it does not parse.
    """
    packaged = packaged_templates()
    name, source = _find(name_or_source, packaged)
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.DictLoader(packaged),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # prompts are plain text
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        sources = list(_sources(environment, source, packaged))
        version = sha256("\0".join(sources))[:16]
        variables = frozenset[str]().union(*(meta.find_undeclared_variables(environment.parse(s)) for s in sources))
        return Template(name, source, version, variables, environment.from_string(source))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the template does not parse: {error.message}", where=f"template {name}, line {error.lineno}"
        ) from error


def _find(name_or_source: str | Path, packaged: dict[str, str]) -> tuple[str, str]:
    text = str(name_or_source)
    if isinstance(name_or_source, str) and ("{{" in text or "{%" in text or "\n" in text):
        return "inline", text
    for name in (text, text + _SUFFIX):
        if name in packaged:
            return name, packaged[name]
    try:
        return text, Path(text).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(name.removesuffix(_SUFFIX) for name in packaged))
        raise ConfigError(
            f"there is no prompt template {text!r}",
            where=text,
            hint=f"name one of {known}, a readable file, or write the template inline with {{{{ question }}}}",
        ) from error


def _sources(environment: jinja2.Environment, source: str, packaged: dict[str, str]) -> Iterator[str]:
    """A template's source and, in order of appearance, those of everything it includes."""
    seen: set[str] = set()
    pending = [source]
    while pending:
        current = pending.pop(0)
        yield current
        for name in meta.find_referenced_templates(environment.parse(current)):
            if name in packaged and name not in seen:
                seen.add(name)
                pending.append(packaged[name])
