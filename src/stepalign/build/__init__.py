"""From a configuration to live objects: the only factory, and the last place that sees the whole configuration.

Importing it loads no torch; opening a session does.
"""

from stepalign.build.critic import CORRECTING, OWN_FORMS, check_critic, check_critic_keys, make_critic
from stepalign.build.run import find_terms, follow_rank_0, make_learner, make_run
from stepalign.build.session import Session, find_engine, make_replier, open_session
from stepalign.build.solver import (
    find_truth,
    has_teacher,
    make_prompts,
    model_choice,
    other_teacher,
    prompt_templates,
    recipe_solver,
    served_teacher,
)
