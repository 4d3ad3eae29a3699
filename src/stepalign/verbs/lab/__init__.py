"""The lab: a local page on which one edits feedback and sees at once which tokens it reinforces or suppresses."""

from __future__ import annotations

from collections.abc import Iterable

from stepalign.events import Listener, line


def open_lab(model: str, *, recipe: str = "", port: int = 0, settings: Iterable[str] = (), listener: Listener) -> None:
    """Load a solver and serve the lab on the loopback address until interrupted.

    Args:
        model: as ``model.path`` of a recipe; the recipe's own when empty.
        recipe: prompts, temperature and critic; for the embedded solver "arithmetic" when empty, else the defaults.
        port: any free one for 0.
        listener: receives the address, with the token that opens the page, and which examples do not fit the desk.

    Raises:
        ConfigError: starlette or uvicorn is not installed, the port is taken, or model or recipe cannot be used.
    """
    from stepalign.config import changed, load_config, recipe_folder
    from stepalign.domains.table import recipe_of
    from stepalign.verbs.lab.server import bind, check_installed, serve
    from stepalign.verbs.lab.sheet import load_examples

    check_installed()
    with bind(port) as found:
        from stepalign.verbs.lab.bench import Bench

        recipe = recipe or recipe_of(model)
        config = load_config(recipe or None, settings)
        if model:
            config = changed(config, {"model.path": model, "model.plain_prompts": True}, "lab")
        bench = Bench(config, from_recipe=bool(recipe))
        try:
            opening = bench.opening()
            sheets = [("the solver's own attempt", opening)] if opening else []
            examples, left_out = load_examples(recipe_folder() / "examples")
            sheets += examples
            for reason in left_out:
                listener(line(f"an example is left out: {reason}"))
            desk = {
                "model": config.model.path,
                "temperature": config.sampling.temperature,
                "examples": [{"name": name, "sheet": sheet.model_dump()} for name, sheet in sheets],
            }
            serve(bench, desk, found, lambda text: listener(line(text)))
        finally:
            bench.close()
