"""One thread, and float32 as the default again after every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def torch_as_it_was():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
