"""The fast path of a block on CPUs, behind one call in ``Block.forward``."""
