"""Optimizers come back from a checkpoint to the device of their parameters."""

import torch
from torch import nn

from dsonas.sparse.proximal import ProximalNAG
from dsonas.train.optimizers import restore


def test_penalties_come_back_to_the_device_of_their_parameters():
    vector = nn.Parameter(torch.ones(3))
    optimizer = ProximalNAG([{"params": [vector], "penalty": torch.ones(3)}], lr=0.1)
    vector.grad = torch.ones(3)
    optimizer.step()
    elsewhere = nn.Parameter(torch.ones(3, device="meta"))
    again = ProximalNAG([{"params": [elsewhere], "penalty": torch.ones(3)}], lr=0.1)
    restore(again, optimizer.state_dict())
    assert again.param_groups[0]["penalty"].device.type == "meta"
    assert again.state[elsewhere]["momentum_buffer"].device.type == "meta"
