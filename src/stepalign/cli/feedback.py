"""Commands about feedback: critique."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from stepalign.cli.options import OutOption, ResumeOption, SetOption, budget_spent, interrupted
from stepalign.config import Config, changed, load_config, parse_settings
from stepalign.errors import BudgetSpentError, ConfigError


def critique(
    rollouts: Annotated[Path, typer.Argument(help="A run folder, its rollouts.jsonl, or JSON lines of attempts.")],
    out: OutOption,
    critic: Annotated[
        str, typer.Option("--critic", help="A recipe, URLs (http://host/v1, separated by commas), or: programmatic.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Name of the critic on its server; not needed where that has only one.")
    ] = "",
    columns: Annotated[
        str, typer.Option("--columns", help="Columns of a plain file: question=COLUMN,completion=COLUMN,...")
    ] = "",
    cache_only: Annotated[
        bool, typer.Option("--critic-cache-only", help="Replay from the cache; never call the critic.")
    ] = False,
    settings: SetOption = None,
    resume: ResumeOption = False,
) -> None:
    """Ask a critic about stored attempts and say what is wrong with its critiques: a linter for feedback."""
    from stepalign.critics.served import served_model
    from stepalign.report.critiques import critique_lines
    from stepalign.verbs.attempts import read_attempts
    from stepalign.verbs.critique import critique_rollouts
    from stepalign.verbs.progress import Display, console

    attempts = read_attempts(rollouts, _pairs(columns))
    keys = {"critic.cache_only": True} if cache_only else {}
    config = _with_critic(attempts.config, critic, model, {**keys, **parse_settings(settings or ())})
    section = config.critic
    if section.kind == "endpoint" and not section.model and not section.cache_only:
        model = served_model(config.critic)
        config = changed(config, {"critic.model": model}, "--model")
    words: list[str | Path] = ["stepalign", "critique", rollouts, "--out", out]
    words += ["--critic", critic] if critic else []
    words += ["--model", model] if model else []
    words += ["--columns", columns] if columns else []
    words += ["--critic-cache-only"] if cache_only else []
    words += [word for setting in settings or () for word in ("--set", setting)]
    command = shlex.join(map(str, [*words, "--resume"]))
    with Display(transient=True) as display:
        try:
            summary = critique_rollouts(config, attempts, out, resume=resume, listener=display)
        except KeyboardInterrupt:
            raise interrupted(command) from None
        except BudgetSpentError as error:
            raise budget_spent(error, command) from None
    for line in critique_lines(summary):
        console.print(line)
    console.print(f"page: {out / 'index.html'}")


# ---------------------------------------------------------------------------------------------------------------------


def _pairs(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a dictionary."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for name, equals, column in pairs:
        if not (equals and name.strip() and column.strip()):
            raise ConfigError(f"--columns {text} is no list of pairs", hint="write --columns question=Q,completion=C")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _with_critic(of_run: Config | None, critic: str, model: str, settings: dict[str, Any]) -> Config:
    """The run's own recipe, or the defaults, with the critic that was named.

    Raises:
        ConfigError: no critic is named.
    """
    base = of_run or load_config(None)
    keys: dict[str, Any] = {"critic.model": model} if model else {}
    if critic.startswith(("http://", "https://")):
        keys |= {"critic.kind": "endpoint", "critic.base_urls": [_api_address(url) for url in critic.split(",")]}
    elif critic == "programmatic":
        keys["critic.kind"] = "programmatic"
    elif critic and _is_host(critic):
        raise ConfigError("an address needs its protocol", where=f"--critic {critic}", hint=f"--critic http://{critic}")
    elif critic:
        named = load_config(critic)
        keys = {"critic": named.critic.model_dump(mode="json"), "prompts.critic": named.prompts.critic, **keys}
    elif of_run is None and not any(key.startswith("critic.") for key in settings):
        raise ConfigError(
            "who is the critic?",
            where="--critic",
            hint="--critic RECIPE, --critic http://HOST:PORT/v1 --model NAME, or --critic programmatic",
        )
    return changed(base, {**keys, **settings}, "--critic, --set")


def _api_address(url: str) -> str:
    """A bare host stands for its ``/v1``, where OpenAI-compatible servers have their interface."""
    parts = urlsplit(url.strip())
    return urlunsplit(parts._replace(path="/v1")) if parts.path in ("", "/") else url.strip()


def _is_host(text: str) -> bool:
    """Whether a text looks like ``localhost:8000`` or ``host:8000/v1``."""
    return re.fullmatch(r"[\w.-]+:\d{1,5}(/.*)?", text) is not None
