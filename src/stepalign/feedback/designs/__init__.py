"""Context designs: the texts that a self-teacher is shown. Each is a small function in one table (``DESIGNS``).

A design turns a group - one problem, the graded attempts at it, their critiques - into one Context per attempt.
Everything after it is data: the trainer never knows which design ran. docs/designs.md shows each on one attempt.
"""

from stepalign.feedback.designs.design import Design, Group, Need, NothingToShow, make_group
from stepalign.feedback.designs.table import (
    CONDITIONS,
    DESIGNS,
    Condition,
    check_condition,
    critique_forms,
    find_condition,
    find_design,
    group_rollouts,
    make_contexts,
)
