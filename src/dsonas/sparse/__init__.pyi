from .any_model import (
    list_connections as list_connections,
    scale_connections as scale_connections,
)
from .applying import (
    Choices as Choices,
    apply_choices as apply_choices,
    choices_of as choices_of,
    chosen as chosen,
    finalise as finalise,
    save_choices as save_choices,
)
from .choices import (
    BATCH_NORM_RANKS as BATCH_NORM_RANKS,
    Choice as Choice,
    Features as Features,
    InputChoice as InputChoice,
    LayerChoice as LayerChoice,
    Zero as Zero,
)
from .connections import (
    mask_factors as mask_factors,
    normalise_factors as normalise_factors,
    scaling_factors as scaling_factors,
)
from .model_pruning import (
    prune_model as prune_model,
)
from .proximal import (
    ProximalNAG as ProximalNAG,
    soft_threshold as soft_threshold,
)
from .recording import (
    arguments as arguments,
)
from .saving import (
    load_model as load_model,
    save_model as save_model,
)
