"""Commands that measure: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stepalign.cli.options import SetOption
from stepalign.config import Config, load_config
from stepalign.errors import ConfigError


def evaluate(
    model: Annotated[str, typer.Argument(help="embedded:arithmetic, a model folder, a Hub name, or a run folder.")],
    problems: Annotated[str, typer.Option("--problems", help="JSONL file, or embedded:arithmetic for its test set.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file for the numbers; completions lie beside it.")],
    n: Annotated[int, typer.Option("--n", help="Completions per problem.", min=1)] = 12,
    recipe: Annotated[str, typer.Option("--recipe", help="Prompts and sampling come from this recipe.")] = "",
    settings: SetOption = None,
) -> None:
    """Pass@k, Maj@k and Avg@k with intervals, completion length and truncation."""
    from stepalign.progress import console, headline
    from stepalign.training.evaluation import evaluate_model

    config = _config_for_model(model, recipe, settings, {"evaluation.num_samples": n})
    result = evaluate_model(config, problems, out)
    console.print(headline(result["metrics"]))
    console.print(f"{result['num_problems']} problems x {n} completions; numbers: {out}")


def _config_for_model(model: str, recipe: str, settings: list[str] | None, keys: dict[str, Any]) -> Config:
    """The configuration that goes with a model: that of its run, of the embedded recipe, or the one named."""
    from stepalign.config import changed, parse_settings

    folder = Path(model)
    if (folder / "arms").is_dir():
        runs = sorted(str(final.parent.relative_to(folder)) for final in folder.glob("arms/*/seed-*/final"))
        raise ConfigError(
            "a comparison holds many models; one of its runs is needed",
            where=model,
            hint=f"give {folder / 'arms' / 'ARM' / 'seed-N'}; finished: {', '.join(runs) or 'none yet'}",
        )
    is_run = (folder / "config.toml").exists() and (folder / "run.lock").exists()
    default = str(folder / "config.toml") if is_run else "arithmetic" if model.startswith("embedded:") else None
    keys = {**keys, "model.path": str(folder / "final") if is_run else model, "model.lora": None, "data.max_test": None}
    return changed(load_config(recipe or default), {**keys, **parse_settings(settings or ())}, "--set")
