"""What holds for every kernel, however it is called."""

import numba
import numpy as np
import pytest

from dynloop.kernels import kernel, vector_kernel


@pytest.mark.parametrize("compiled", [kernel, vector_kernel])
def test_a_kernel_called_with_numbers_and_variables_is_compiled_once(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    @compiled
    def shifted(x, n, upwards):
        return x + n if upwards else x - n

    @compiled
    def both(x, n):
        return shifted(x, 1, True) + shifted(x, 2, upwards=False) + shifted(x, n, n > 0)

    assert both(1.5, 3) == 2.5 - 0.5 + 4.5
    assert shifted.signatures == [(numba.float64, numba.int64, numba.boolean)]
    np.testing.assert_array_equal(both(np.ones(2), -1), [2.0 - 1.0 + 2.0] * 2)
