from .baselines import (
    HAND_MADE as HAND_MADE,
    blocks_macs as blocks_macs,
    first_accepted as first_accepted,
    follow_epochs as follow_epochs,
    hand_made as hand_made,
    random_architectures as random_architectures,
    random_plan_result as random_plan_result,
)
from .choice_supernet import (
    ChoiceNetwork as ChoiceNetwork,
    ChoiceSupernet as ChoiceSupernet,
)
from .compressing import (
    EPOCHS as EPOCHS,
    FACTOR_LR as FACTOR_LR,
    compress as compress,
    scale_model as scale_model,
)
from .removal import (
    connection_flows as connection_flows,
    node_importance as node_importance,
    planned_cost as planned_cost,
)
from .scaled_supernet import ScaledSupernet as ScaledSupernet
from .search_config import (
    PretrainConfig as PretrainConfig,
    SearchConfig as SearchConfig,
    weight_steps_per_factor_step as weight_steps_per_factor_step,
)
from .searcher import (
    Searcher as Searcher,
    SearchResult as SearchResult,
)
from .shrinking import (
    shrink as shrink,
)
from .stages import (
    BlockResult as BlockResult,
    Pretraining as Pretraining,
    Searching as Searching,
    alternation as alternation,
    search as search,
    search_network as search_network,
)
