from .augmentation import Augmentation as Augmentation
from .batches import Batches as Batches
from .checking import FolderCheck as FolderCheck, check_folder as check_folder
from .data_config import (
    FITS as FITS,
    PLACED as PLACED,
    DataConfig as DataConfig,
    DataError as DataError,
    crop_share as crop_share,
    plain_name as plain_name,
    short_name as short_name,
    with_share as with_share,
)
from .folder_images import (
    choose_image_size as choose_image_size,
    list_files as list_files,
    load_images as load_images,
    scan as scan,
)
from .folders import list_contents as list_contents
from .images import FileImages as FileImages, ImageSet as ImageSet, TensorImages as TensorImages
from .loading import (
    ImageData as ImageData,
    load_data as load_data,
    load_test as load_test,
    resolve_augmentation as resolve_augmentation,
    split_for_search as split_for_search,
)
from .pixels import RESIZE as RESIZE
from .shards import write_shards as write_shards
from .splitting import Listing as Listing, Split as Split
