"""The lab: a local page on which one edits feedback and sees at once which tokens it reinforces or suppresses."""

from __future__ import annotations

from collections.abc import Iterable

from stepalign.events import Event, Listener, line


def open_lab(model: str, *, recipe: str = "", port: int = 0, settings: Iterable[str] = (), listener: Listener) -> None:
    """Load a solver and serve the lab on the loopback address until interrupted.

    Args:
        model: a run folder, or as ``model.path`` of a recipe.
        recipe: prompts, temperature and critic. When empty they are those of the model's run or domain; for any other
            model a question is asked as it stands, as ``stepalign signal FILE`` asks it.
        port: any free one for 0.
        listener: receives the address, with the token that opens the page, and which examples are left out.

    Raises:
        ConfigError: starlette or uvicorn is not installed, the port is taken, or model or recipe cannot be used.
    """
    from stepalign.config import changed, recipe_folder
    from stepalign.models.places import find_model
    from stepalign.verbs.configs import DEFAULTS, config_for_file
    from stepalign.verbs.lab.request import load_examples
    from stepalign.verbs.lab.server import bind, check_installed, serve

    check_installed()
    config, origin = config_for_file(model, recipe, settings)
    config = changed(config, {"model.plain_prompts": True}, "lab")
    find_model(config.model.path)
    with bind(port) as found:
        from stepalign.verbs.lab.scorer import Scorer

        scorer = Scorer(config, from_recipe=origin != DEFAULTS, listener=listener)
        try:
            opening = scorer.opening()
            examples, left_out = load_examples(recipe_folder() / "examples")
            if opening:
                examples.insert(0, ("the solver's own attempt", opening))
            for reason in left_out:
                listener(line(f"an example is left out: {reason}"))
            beginning = {
                "model": config.model.path,
                "temperature": config.sampling.temperature,
                "examples": [{"name": name, "request": request.model_dump()} for name, request in examples],
            }
            # Its token is for the reader of this terminal: ``line`` would hide it.
            serve(scorer, beginning, found, lambda text: listener(Event(kind="line", text=text)))
        finally:
            scorer.close()
