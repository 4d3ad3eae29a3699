"""A run is a file: one validated tree, TOML in, resolved TOML out.

``schema`` has every key with its meaning, unit and default; ``recipe`` reads, checks and writes the file; ``arms``
makes one configuration from another.
"""

from stepalign.config.arms import arm_config, changed, difference
from stepalign.config.recipe import (
    CRITIC_URLS,
    PRIVATE_URLS,
    Settings,
    check_checkpoint_rule,
    find_recipe,
    load_config,
    parse_settings,
    recipe_folder,
    to_toml,
    validate,
    without_passwords,
)
from stepalign.config.schema import (
    ArmSection,
    Budget,
    CheckpointRule,
    CompareSection,
    Config,
    DataSection,
    EvaluationSection,
    Hybrid,
    LoraSection,
    ModelSection,
    ObjectiveSection,
    PromptsSection,
    SelectionSection,
    SignalSection,
    TrainingSection,
    all_keys,
)
from stepalign.config.sections import (
    CriticSection,
    EnvironmentSection,
    GuardPolicy,
    GuardsSection,
    PoliciesSection,
    Policy,
    PrepareSection,
    QualitySection,
    RolloutsSection,
    SamplingSection,
    SecondCriticSection,
    ServerSection,
    TeacherSection,
    TeacherWeights,
    UnusablePolicy,
)
