from .any_model import (
    scale_connections as scale_connections,
)
from .model_pruning import (
    prune_model as prune_model,
)
from .proximal import (
    ProximalNAG as ProximalNAG,
    soft_threshold as soft_threshold,
)
