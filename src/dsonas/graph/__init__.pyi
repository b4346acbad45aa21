from .architecture import (
    MAX_FILE_NODES as MAX_FILE_NODES,
    REDUCTION_OPERATIONS as REDUCTION_OPERATIONS,
    STEMS as STEMS,
    Architecture as Architecture,
    ArchitectureError as ArchitectureError,
    BlockGraph as BlockGraph,
    Connection as Connection,
    Skeleton as Skeleton,
    block_connections as block_connections,
    doubled_channels as doubled_channels,
    scale_channels as scale_channels,
)
from .drawing import (
    draw_architecture as draw_architecture,
    readable_operation as readable_operation,
)
from .jsonvalues import (
    read_list as read_list,
    read_mapping as read_mapping,
)
from .spaces import (
    PAPER_OPERATIONS as PAPER_OPERATIONS,
    SHARINGS as SHARINGS,
    SearchSpace as SearchSpace,
)
