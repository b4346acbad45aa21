from .any_model import (
    find_joins as find_joins,
    is_unfelt as is_unfelt,
    list_connections as list_connections,
    scale_connections as scale_connections,
    scale_joins as scale_joins,
)
from .applying import (
    Choices as Choices,
    apply_choices as apply_choices,
    choices_of as choices_of,
    chosen as chosen,
    finalise as finalise,
    save_choices as save_choices,
)
from .channels import (
    ChannelMap as ChannelMap,
    channel_magnitudes as channel_magnitudes,
    find_channels as find_channels,
    fold_factors as fold_factors,
    remove_channels as remove_channels,
    scale_channels as scale_channels,
    unscale_channels as unscale_channels,
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
    ScaledConcat as ScaledConcat,
    ScaledSum as ScaledSum,
    mask_factors as mask_factors,
    normalise_factors as normalise_factors,
    scaling_factors as scaling_factors,
)
from .model_pruning import prune_model as prune_model
from .observing import (
    State as State,
    joined as joined,
    leaves_of as leaves_of,
    module_of as module_of,
    observe as observe,
    placed as placed,
)
from .proximal import ProximalNAG as ProximalNAG, soft_threshold as soft_threshold
from .recording import (
    arguments as arguments,
    bad_example as bad_example,
    copied as copied,
    evaluating as evaluating,
    unwrap as unwrap,
)
from .saving import load_model as load_model, save_model as save_model
from .tracing import trace as trace
