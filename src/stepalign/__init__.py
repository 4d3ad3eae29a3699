"""stepalign: train a language model on feedback, and see what that feedback teaches, token by token."""

__version__ = "0.1.0"
