"""Data sets, the split of the training set, augmentation and batches.

Names load on first use, so that reading ``DataConfig`` does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
