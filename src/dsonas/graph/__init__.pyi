from .architecture import (
    MAX_FILE_NODES as MAX_FILE_NODES,
    REDUCTION_OPERATIONS as REDUCTION_OPERATIONS,
    SHARINGS as SHARINGS,
    Architecture as Architecture,
    Place as Place,
    Skeleton as Skeleton,
    doubled_channels as doubled_channels,
    scale_channels as scale_channels,
)
from .block import (
    BlockGraph as BlockGraph,
    Connection as Connection,
    block_connections as block_connections,
)
from .drawing import (
    draw_architecture as draw_architecture,
    readable_operation as readable_operation,
)
from .jsonvalues import (
    ArchitectureError as ArchitectureError,
    read_list as read_list,
    read_mapping as read_mapping,
)
from .spaces import PAPER_OPERATIONS as PAPER_OPERATIONS, SearchSpace as SearchSpace
