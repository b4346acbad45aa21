from .checkpoints import (
    CheckpointError as CheckpointError,
    CheckpointFolder as CheckpointFolder,
    StageCheckpoints as StageCheckpoints,
)
from .engine import Engine as Engine, EngineConfig as EngineConfig
from .graphs import WARM as WARM
from .loop import (
    DivergedError as DivergedError,
    Interrupted as Interrupted,
    Journal as Journal,
    Row as Row,
    Stage as Stage,
    run_stage as run_stage,
)
from .optimizers import restore as restore, set_lr as set_lr, sgd as sgd
from .processes import Processes as Processes, running as running
from .schedules import (
    Schedule as Schedule,
    constant as constant,
    cosine as cosine,
    multi_step as multi_step,
)
from .steps import factor_gradients as factor_gradients, weight_step as weight_step
from .training import (
    MEASUREMENTS as MEASUREMENTS,
    Outcome as Outcome,
    TrainConfig as TrainConfig,
    Training as Training,
    classify as classify,
    evaluate as evaluate,
)
from .world import (
    STAGES as STAGES,
    World as World,
    current_world as current_world,
    require_single as require_single,
)
