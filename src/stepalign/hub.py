"""Whether the Hub answers: asked once, before a library that would try for a minute."""

from __future__ import annotations

import os
from functools import cache

_SECONDS = 5.0


@cache
def is_reachable() -> bool:
    """False where the Hub does not answer, or is not to be asked; libraries then look at this machine alone."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # every kind of failure of its HTTP library
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        return False
    return True


def has_copy(name: str, file: str) -> bool:
    """Whether a file of a model on the Hub is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file), str)
