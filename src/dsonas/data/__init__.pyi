from .augmentation import (
    Augmentation as Augmentation,
    augment as augment,
)
from .batches import (
    Batches as Batches,
)
from .data_config import (
    PLACED as PLACED,
    DataConfig as DataConfig,
    DataError as DataError,
    short_name as short_name,
)
from .folders import (
    Listing as Listing,
    choose_image_size as choose_image_size,
    list_parts as list_parts,
    scan as scan,
)
from .images import (
    FileImages as FileImages,
    ImageSet as ImageSet,
    TensorImages as TensorImages,
)
from .loading import (
    ImageData as ImageData,
    load_data as load_data,
    resolve_augmentation as resolve_augmentation,
    split_for_search as split_for_search,
)
from .normalisation import (
    normalise as normalise,
)
from .pixels import (
    RESIZE as RESIZE,
)
from .prediction import (
    load_images as load_images,
)
from .shards import (
    write_shards as write_shards,
)
