"""Where the mixers' tests run."""

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """The CPU, with the libraries' reference code, and a GPU, with the kernels that train there."""
    return request.param
