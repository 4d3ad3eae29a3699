"""How a page is made: templates, style and script of the assets folder become one file that needs no network.

The content security policy allows exactly the two blocks we wrote, by hash, so that no text of a model or critic could
run even if it escaped its element. Text reaches a page through autoescaping templates or through ``textContent``, never
as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from stepalign.report import drawing, scale
from stepalign.report.text import MISSING, count, decimal, number_of, percent, seconds, visible

VIEWER_PARTS = (
    *("dom", "text", "scale", "data", "list", "head", "panels", "beside", "strip", "numbers", "card", "moves", "links"),
    *("export", "main"),
)
"""Source files of the viewer, in the order in which they are joined."""
DARK_ARMS = ("#35b8a6", "#e8a04c", "#a994f0", "#ec7aa8", "#84c464", "#6fb5ee", "#c8a774", "#a3afc0")
DARK_BASE = "#9aa1ab"


def render_page(template: str, values: dict[str, Any], parts: Sequence[str] = (), *, stylesheet: str = "") -> str:
    """A page of the assets folder as one HTML text.

    Args:
        parts: scripts of the assets folder that go with the viewer; they may talk to the server the page came from.
        stylesheet: a stylesheet of its own besides the common one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every value of a page passes here: text is made visible first, then escaped by autoescaping.
        finalize=lambda value: value if isinstance(value, Markup) or hasattr(value, "__html__") else visible(value),
    )
    environment.filters |= {
        "percent": percent,
        "decimal": decimal,
        "clock": seconds,
        "count": count,
        "number_of": number_of,
        "arm_class": drawing.arm_class,
        "mark": _mark,
        "exact": lambda value: MISSING if value is None else json.dumps(value),
        "given": lambda value: MISSING if value is None else value,
    }
    with_viewer = bool(values.get("signal") or parts)
    style = "\n".join([asset("page.css"), _arm_rules(), *([viewer_style()] if with_viewer else [])])
    if stylesheet:
        style += "\n" + asset(stylesheet)
    script = viewer_script(*parts) if with_viewer else ""
    return environment.get_template(template).render(
        **values,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
        "form-action 'none'" + ("; connect-src 'self'" if parts else ""),
        version=package_version(),
    )


def write_page(path: Path, text: str) -> None:
    """All or nothing: a page that is being written is never seen half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def viewer_script(*more: str) -> str:
    """The viewer's parts in one closure, with further files of the assets folder after them."""
    files = [*(f"viewer/{name}.js" for name in VIEWER_PARTS), *more]
    return "(() => {\n" + "\n".join(asset(name) for name in files) + "\n})();"


def viewer_style() -> str:
    """The viewer's rules and the colours of every level of the scale."""
    return asset("viewer.css") + "\n" + scale.stylesheet()


def _mark(colour: int) -> Markup:
    """The point of an arm as a small picture, for use beside its name."""
    point = drawing.marker(colour, 7, 7, 4.4)
    return Markup(f'<svg class="swatch" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{point}</svg>')


def _arm_rules() -> str:
    """One colour per arm as classes, so that dark mode can lift them; SVG attributes alone could not change."""

    def rules(colours: Sequence[str]) -> str:
        names = [f"arm-{index}" for index in range(len(drawing.ARM_COLOURS))] + ["arm-base"]
        return "\n".join(
            f".mark.{name},.name.{name},.band.{name}{{fill:{colour}}}.stroke.{name}{{stroke:{colour}}}"
            for name, colour in zip(names, colours, strict=True)
        )

    light = rules([*drawing.ARM_COLOURS, drawing.BASE_COLOUR])
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{rules([*DARK_ARMS, DARK_BASE])}\n}}"


def _source(block: str) -> str:
    digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def asset(name: str) -> str:
    """A file of the assets folder, by its path in there."""
    return resources.files("stepalign.report").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def package_version() -> str:
    """What pip says is installed; "unknown" in a bare checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stepalign")
    except PackageNotFoundError:
        return "unknown"
