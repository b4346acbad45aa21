from .blocks import (
    Block as Block,
    Candidate as Candidate,
    ConvBNReLU as ConvBNReLU,
    ReductionBlock as ReductionBlock,
    batch_norm as batch_norm,
)
from .cpu.batchnorm import BatchNorm as BatchNorm
from .cpu.layout import Layout as Layout
from .network import AuxiliaryHead as AuxiliaryHead, Network as Network, build as build
from .operations import (
    AveragePool as AveragePool,
    DepthwiseConv as DepthwiseConv,
    build_operation as build_operation,
    operation_names as operation_names,
    register_operation as register_operation,
)
from .scaling import ScaledModule as ScaledModule
