from .baselines import (
    HAND_MADE as HAND_MADE,
    blocks_macs as blocks_macs,
    first_accepted as first_accepted,
    hand_made as hand_made,
    random_architectures as random_architectures,
)
from .importance import (
    connection_flows as connection_flows,
    node_importance as node_importance,
)
from .penalties import (
    connection_penalties as connection_penalties,
)
from .pretraining import (
    Pretraining as Pretraining,
)
from .random_plans import (
    random_plan_result as random_plan_result,
)
from .removal import (
    Factors as Factors,
    Measure as Measure,
    Worth as Worth,
    flow_worth as flow_worth,
    follow_plan as follow_plan,
)
from .search_config import (
    PretrainConfig as PretrainConfig,
    SearchConfig as SearchConfig,
    weight_steps_per_factor_step as weight_steps_per_factor_step,
)
from .search_stages import (
    Searching as Searching,
    SearchResult as SearchResult,
    alternation as alternation,
)
from .searching import (
    search as search,
)
from .shrinking import (
    shrink as shrink,
)
