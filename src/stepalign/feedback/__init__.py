"""The texts for the self-teacher: steps, critiques, their alignment, and the context designs."""

from stepalign.feedback.alignment import Alignment, align
from stepalign.feedback.steps import split_steps

__all__ = ["Alignment", "align", "split_steps"]
