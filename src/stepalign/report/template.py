"""Templates, style and script of the assets folder become one HTML file that needs no network.

The content security policy allows exactly our two blocks, by hash, so that no text of a model or critic could run even
if it escaped its element. Text reaches a page through autoescaping templates or ``textContent``, never as markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

import stepalign
from stepalign.report import drawing, scale
from stepalign.report.results_schema import seeds_text
from stepalign.report.text import MISSING, count, decimal, number_of, p_value, visible
from stepalign.storage.fingerprint import digest

VIEWER_PARTS = (
    *("dom", "text", "scale", "data", "list", "head", "panels", "beside", "strip", "numbers", "card", "moves", "links"),
    *("export", "drop", "main"),
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
        "decimal": decimal,
        "p_value": p_value,
        "seeds": seeds_text,
        "count": count,
        "number_of": number_of,
        "mark": _mark,
        "exact": lambda value: MISSING if value is None else json.dumps(value),
        "given": lambda value: MISSING if value is None else value,
    }
    styles, script = [asset("page.css"), _arm_rules()], ""
    if values.get("signal") or parts:
        styles += [asset("viewer.css"), scale.stylesheet()]
        files = [*(f"viewer/{name}.js" for name in VIEWER_PARTS), *parts]
        script = "(() => {\n" + "\n".join(map(asset, files)) + "\n})();"
    style = "\n".join([*styles, *([asset(stylesheet)] if stylesheet else [])])
    return environment.get_template(template).render(
        **values,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
        "form-action 'none'" + ("; connect-src 'self'" if parts else ""),
        version=stepalign.__version__,
    )


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
    checksum = base64.b64encode(digest(block)).decode()
    return f"'sha256-{checksum}'"


def asset(name: str) -> str:
    """A file of the assets folder, by its path in there."""
    return resources.files("stepalign.report").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")
