"""``stepalign signal``, and the same for a notebook."""

from stepalign.verbs.signal.notebook import Signal, TopToken, signal

__all__ = ["Signal", "TopToken", "signal"]
