"""What a run will take, before it starts: steps, multiply-adds, bytes, memory, time.

The steps, the multiply-adds and the architectures follow from the configuration; the time comes
from a stated device or from a few steps of each kind on the device at hand.
"""

from dsonas.commands.planning.counting import Step, StepCounter
from dsonas.commands.planning.devices import Device, StatedDevice
from dsonas.commands.planning.growth import growth
from dsonas.commands.planning.measuring import measured_device
from dsonas.commands.planning.projecting import Cluster, Line, Outline, Projection, outline, project
from dsonas.commands.planning.shapes import DataShape, find_shape
from dsonas.commands.planning.trajectory import Phase, search_phases

__all__ = [
    "Cluster",
    "DataShape",
    "Device",
    "Line",
    "Outline",
    "Phase",
    "Projection",
    "StatedDevice",
    "Step",
    "StepCounter",
    "find_shape",
    "growth",
    "measured_device",
    "outline",
    "project",
    "search_phases",
]
