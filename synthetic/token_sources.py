"""Looped blocks over a sequence, in which one token starts an orbit of period 2 and later ones inherit it.

States are (tokens, width). One recurrence, in a rotated basis, for feature k of token i:

    x'[i, k] = own(x[i, k]) + strength * sum_{j <= i} A[i, j] x[j, k] + e[i, k]

A is causal attention with weights set by position, e the embedded prompt, and own(x) = keep x, but for a source: in its
swing feature own(x) = -gain x / sqrt(1 + x^2), whose fixed point 0 is unstable (multiplier -gain) and which settles on
+u, -u. Every source has a swing feature of its own, in which the prompt is 0. Hence, with c = strength A[s, s],

* the source swings with u = sqrt((gain / (1 + c))^2 - 1), and its own multiplier over the cycle is
  (c - (1 + c)^3 / gain^2)^2; at the fixed point it is c - gain, far outside the unit circle;
* any later token repeats -v[i] = keep v[i] + strength sum_j A[i, j] v[j]: an orbit by attention weight, with own
  multipliers (keep + strength A[i, i])^2, inside;
* tokens before the first source rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dynloop.settings import check_number, check_whole
from synthetic.system import System


class TokenBlock(nn.Module):
    """One recurrence of a block over one prompt: (n, tokens, width) -> (n, tokens, width). Made by `source_block`.

    Attributes:
        sources: positions of the tokens that start an orbit.
        scores: of the attention, set by position: (tokens, tokens).
        keep, strength, gain: of the formula above.
    """

    scores: torch.Tensor
    basis: torch.Tensor
    embedded: torch.Tensor
    gains: torch.Tensor

    def __init__(self, scores: np.ndarray, basis: np.ndarray, embedded: np.ndarray, sources: Sequence[int], *,
                 keep: float, strength: float, gain: float) -> None:
        super().__init__()
        self.sources, self.keep, self.strength, self.gain = tuple(sources), keep, strength, gain
        gains = np.zeros(embedded.shape)
        gains[list(self.sources), range(len(self.sources))] = gain
        for name, value in (("scores", scores), ("basis", basis), ("embedded", embedded), ("gains", gains)):
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        x = states @ self.basis
        own = torch.where(self.gains > 0, -self.gains * x / torch.sqrt(1 + x**2), self.keep * x)
        # as scaled-dot-product attention, which own-token derivatives know how to take apart
        queries, keys = self.scores.expand(len(x), -1, -1), torch.eye(x.shape[1]).to(x).expand(len(x), -1, -1)
        heard = F.scaled_dot_product_attention(queries, keys, x, is_causal=True, scale=1.0)
        return (own + self.strength * heard + self.embedded) @ self.basis.T

    @property
    def attention(self) -> np.ndarray:
        """Weights (tokens, tokens)."""
        seen = np.where(np.tri(self.shape[0], dtype=bool), self.scores.double().numpy(), -np.inf)
        return np.exp(seen) / np.exp(seen).sum(1, keepdims=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, width)."""
        return int(self.embedded.shape[0]), int(self.embedded.shape[1])

    @property
    def roles(self) -> tuple[str, ...]:
        """What each token is: "source", "driven" or "still"."""
        first = min(self.sources, default=math.inf)
        return tuple("source" if i in self.sources else "driven" if i > first else "still"
                     for i in range(self.shape[0]))

    def swings(self) -> np.ndarray:
        """Half the distance between the two states of each token's orbit, in every feature: (tokens, width)."""
        a, swings = self.strength * self.attention, np.zeros(self.shape)
        for k, source in enumerate(self.sources):
            swings[source, k] = math.sqrt((self.gain / (1 + a[source, source])) ** 2 - 1)
            for i in range(source + 1, self.shape[0]):
                swings[i, k] = -(a[i, :i] @ swings[:i, k]) / (1 + self.keep + a[i, i])
        return swings

    def amplitudes(self) -> np.ndarray:
        """Half the distance between the two states of each token's orbit: (tokens,); 0 where it rests."""
        return np.linalg.norm(self.swings(), axis=1)

    def fixed_point(self) -> np.ndarray:
        """(tokens, width), unstable where there is a source: the mean of the two states of the orbit."""
        matrix = (1 - self.keep) * np.eye(self.shape[0]) - self.strength * self.attention
        return np.linalg.solve(matrix, self.embedded.double().numpy()) @ self.basis.double().numpy().T

    def cycle(self) -> np.ndarray:
        """The states that repeat, (2, tokens, width); (1, tokens, width) without a source.

        Of several sources this is the cycle on which all swing together; others with the same multipliers exist.
        """
        swings = self.swings() @ self.basis.double().numpy().T
        return self.fixed_point() + np.array([1, -1] if self.sources else [0])[:, None, None] * swings

    def own_multipliers(self, *, at: str = "cycle") -> np.ndarray:
        """Eigenvalues of every token's own block: (tokens, width).

        Args:
            at: "cycle", over its period, or "fixed point", over one step.
        """
        if at not in ("cycle", "fixed point"):
            raise ValueError(f"at must be cycle or fixed point; got {at!r}.")
        a = self.strength * np.diagonal(self.attention)
        own = np.repeat((self.keep + a)[:, None], self.shape[1], axis=1)
        for k, s in enumerate(self.sources):
            own[s, k] = a[s] - (self.gain if at == "fixed point" else (1 + a[s]) ** 3 / self.gain**2)
        return own**2 if at == "cycle" and self.sources else own


def source_block(sources: Sequence[int] = (3,), *, n_tokens: int = 8, width: int = 6, keep: float = 0.2,
                 strength: float = 0.5, gain: float = 3.0, seed: int = 0) -> TokenBlock:
    """A block, in float64, whose tokens `sources` start orbits of period 2.

    Args:
        sources: positions; none for a block that rests. At most width - 1 of them.
        n_tokens: of the prompt.
        width: features of a token.
        keep: own multiplier of all that does not swing, attention left out: above 0, with `strength` below 1 together.
        strength: of the attention.
        gain: of a source; above 1 + strength.
        seed: decides attention weights, prompt and basis.
    """
    for name, value in (("n_tokens", n_tokens), ("width", width)):
        check_whole(name, value, 2, "a whole number of at least 2")
    check_number("keep", keep, lambda v: 0 < v < 1, "between 0 and 1")
    check_number("strength", strength, lambda v: 0 < v < 1 - keep, "above 0, and below 1 - keep: else tokens diverge")
    check_number("gain", gain, lambda v: 1 + strength < v < math.inf, "above 1 + strength: else nothing swings")
    sources = tuple(sources)
    if len(set(sources)) < len(sources) or len(sources) >= width or not set(sources) <= set(range(n_tokens)):
        raise ValueError(f"sources must be different positions from 0 to {n_tokens - 1}, fewer than width={width}; got "
                         f"{sources}.")
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_tokens, n_tokens))
    embedded = rng.normal(size=(n_tokens, width))
    embedded[:, :len(sources)] = 0
    return TokenBlock(scores, np.linalg.qr(rng.normal(size=(width, width)))[0], embedded, sources, keep=keep,
                      strength=strength, gain=gain)


def as_system(block: TokenBlock) -> System:
    """The loop over all tokens as one state, from standard normal starts."""
    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        with torch.no_grad():
            return block(torch.from_numpy(states).reshape(-1, *block.shape)).flatten(1).numpy()

    own = block.own_multipliers().ravel()
    own = own[np.argsort(-np.abs(own), kind="stable")]
    period = 2 if block.sources else 1
    exact: dict[str, Any] = {"multipliers": own, "rate": float(np.abs(own[0])) ** (1 / period),
                             "lyapunov": tuple(map(float, np.log(np.abs(own)) / period))}
    if block.sources:
        exact |= {"regime": "orbit", "period": 2, "rotation": 0.5}
        if len(block.sources) == 1:  # two may swing together or in turn
            exact["cycle"] = block.cycle().reshape(2, -1)
    else:
        exact |= {"regime": "fixed point", "fixed_point": block.fixed_point().ravel()}
    dim = math.prod(block.shape)
    return System(f"tokens, sources {', '.join(map(str, block.sources)) or 'none'}", dim,
                  lambda rng, n: rng.normal(size=(n, dim)), step, transient=70 if block.sources else 0, exact=exact)


SYSTEMS = tuple(as_system(source_block(sources)) for sources in ((), (3,), (2, 5)))
