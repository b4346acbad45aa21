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
from .refining import (
    refine as refine,
)
from .removal import (
    Factors as Factors,
    Measure as Measure,
    Worth as Worth,
    drop_smallest as drop_smallest,
    flow_worth as flow_worth,
    follow_plan as follow_plan,
)
from .search_config import (
    PretrainConfig as PretrainConfig,
    SearchConfig as SearchConfig,
)
from .search_stages import (
    Searching as Searching,
    SearchResult as SearchResult,
    alternation as alternation,
)
from .searching import (
    search as search,
)
from .sensitivity import (
    loss_without as loss_without,
)
from .shrinking import (
    shrink as shrink,
)
