"""What Anderson acceleration remembers of each row, and the step that it makes of it."""

from __future__ import annotations

import math

import numpy as np
import torch

_NOTHING_NEW = 100.0  # spacings of the number format, over the residual: a shorter difference is rounding
_COMPILED = (torch.float32, torch.float64)  # on the CPU


class Memory:
    """Orthonormal differences of residuals, and those of images combined alike, so that no linear system is solved.

    On the CPU, in single and double precision, a step is one compiled loop, `dynloop.kernels.anderson.combine`: a dozen
    small operations cost more than the numbers in them. Elsewhere it is `combine`, the same in plain torch.

    Args:
        x: rows (n, dim), as they will come.
        size: differences to keep.
    """

    def __init__(self, x: torch.Tensor, size: int) -> None:
        n, dim = x.shape
        self.kept = x.new_zeros(n, 2, size, dim)  # zeros where there is nothing, or nothing any more
        self.left = x.new_empty(n, 2, dim)  # residual and image, less what the memory explains of the residual
        self.steps = -1
        self.smallest = _NOTHING_NEW * torch.finfo(x.dtype).eps
        self.compiled = x.device.type == "cpu" and x.dtype in _COMPILED

    def step(self, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
        """Next states (n, dim) from these and their images, and ||g - x||, (n,) in float64 on the host."""
        self.steps += 1
        if not self.steps:
            self.left = torch.stack((g - x, g), dim=1)
            return g, torch.linalg.vector_norm(self.left[:, 0], dim=-1).cpu().double().numpy()
        size = self.kept.shape[2]
        where = min(self.steps - 1, size), (self.steps - 1) % size, self.smallest
        if not self.compiled:
            following, sizes = combine(x, g, self.kept, self.left, *where)
            return following, sizes.cpu().double().numpy()
        from dynloop.kernels import anderson

        following, sizes = x.new_empty(x.shape), x.new_empty(len(x))
        anderson.combine(x.contiguous().numpy(), g.contiguous().numpy(), self.kept.numpy(), self.left.numpy(), *where,
                         following.numpy(), sizes.numpy())
        return following, sizes.double().numpy()

    def choose(self, rows: torch.Tensor) -> None:
        """Go on with these rows (n,), true or false."""
        self.kept, self.left = self.kept[rows], self.left[rows]

    def forget(self, rows: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> None:
        """Begin anew in these rows (n,), true or false, from states and their images, both (n, dim)."""
        self.kept[rows] = 0
        self.left[rows] = torch.stack((g[rows] - x[rows], g[rows]), dim=1)


def combine(x: torch.Tensor, g: torch.Tensor, kept: torch.Tensor, left: torch.Tensor, used: int, slot: int,
            smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Next states and norms of residuals; `kept` and `left` are brought up to date. Arguments as of the kernel."""
    f = g - x
    sizes = torch.linalg.vector_norm(f, dim=-1)
    explained = (kept[:, 0, :used] @ f[:, :, None])[:, None]  # (n, 1, used, 1)
    now = torch.stack((f, g), dim=1) - (explained.mT @ kept[:, :, :used])[:, :, 0]
    new = now - left
    height = torch.linalg.vector_norm(new[:, 0], dim=-1)
    new /= height.masked_fill(height <= smallest * sizes, math.inf)[:, None, None]
    now -= torch.linalg.vecdot(new[:, 0], now[:, 0])[:, None, None] * new
    kept[:, :, slot], left[:] = new, now
    return now[:, 1], sizes
