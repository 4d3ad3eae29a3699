"""Designs for recipes/study_causes.toml: the critique is shown where the first error is early, or where it is late.

The other wrong attempts are masked and counted. Right attempts are shown their critique in both.
"""

from __future__ import annotations

from stepalign.feedback.designs import Design, Group, NothingToShow
from stepalign.feedback.designs.design import usable_critique
from stepalign.feedback.steps import split_steps


def _early(group: Group, index: int) -> str:
    critique = usable_critique(group, index)
    if critique.first_error and not _in_first_half(group, index):
        raise NothingToShow("the first error is late")
    return critique.text


def _late(group: Group, index: int) -> str:
    critique = usable_critique(group, index)
    if critique.first_error and _in_first_half(group, index):
        raise NothingToShow("the first error is early")
    return critique.text


def _in_first_half(group: Group, index: int) -> bool:
    labels = [step.label for step in split_steps(group.attempts[index].text)]
    error = usable_critique(group, index).first_error
    return error in labels and 2 * labels.index(error) < len(labels) - 1


early = Design(_early, "StepAlignFB, early errors only", needs=("critic",))
late = Design(_late, "StepAlignFB, late errors only", needs=("critic",))
