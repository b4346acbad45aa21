__version__: str
from .cost import (
    Budget as Budget,
    Cost as Cost,
    architecture_cost as architecture_cost,
    fit_width as fit_width,
)
from .data import (
    DataConfig as DataConfig,
    load_data as load_data,
)
from .graph import (
    Architecture as Architecture,
    BlockGraph as BlockGraph,
    SearchSpace as SearchSpace,
    Skeleton as Skeleton,
)
from .nn import (
    Network as Network,
    build as build,
    register_operation as register_operation,
)
from .search import (
    PretrainConfig as PretrainConfig,
    SearchConfig as SearchConfig,
    Searcher as Searcher,
    SearchResult as SearchResult,
    compress as compress,
    search as search,
    shrink as shrink,
)
from .sparse import (
    InputChoice as InputChoice,
    LayerChoice as LayerChoice,
    ProximalNAG as ProximalNAG,
    Zero as Zero,
    apply_choices as apply_choices,
    load_model as load_model,
    prune_model as prune_model,
    save_model as save_model,
    scale_connections as scale_connections,
    soft_threshold as soft_threshold,
)
from .train import (
    Engine as Engine,
    EngineConfig as EngineConfig,
    TrainConfig as TrainConfig,
)
