"""How much of the change that a bound allows does attention make, from one recurrence to the next?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dynloop.maps.arguments import check_tensor
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome


def attention_stability(inputs: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *, causal: bool = True,
                        rotate: Callable[[torch.Tensor], torch.Tensor] | None = None,
                        labels: Mapping[str, Any] | None = None) -> Measurement:
    r"""Change of the attention map between recurrences over the most that its inputs allow (Prop. 4.2).

    With inputs X_t (tokens x features), S_t = softmax(X_t W_Q W_K^T X_t^T / sqrt(d)) row by row, M = W_Q W_K^T and
    dX = X_{t+1} - X_t:

        frobenius  ||dS||_F <= 1/2 * 2 B ||M||_F / sqrt(d) * ||dX||_F,  B the larger of ||X_t||_F and ||X_{t+1}||_F
        mixed      ||dS||_F <= 1/2 * ||M||_2 (||X_t||_2 + ||X_{t+1}||_2) / sqrt(d) * ||dX||_F

    Both hold always; the second is tighter. 1/2 is the Lipschitz constant of the row-wise softmax in the Frobenius
    norm. In the spectral norm it is not (2/3 at 4 tokens, 1.2 at 16), so that no such bound is given. A causal mask is
    a softmax over fewer logits and changes nothing. With rotary positions each row of X W_Q and X W_K is turned by
    itself, M depends on the pair of tokens, and the bounds have ||W_Q|| ||W_K|| for ||M||, and Frobenius norms of X.

    Args:
        inputs: (n, n_steps, tokens, features), what enters the attention of one layer in successive recurrences, after
            the norm before it.
        query: W_Q of each head, (heads, features, d), or (features, d) for one head. From a linear layer: its weight
            transposed, and cut into heads.
        key: W_K likewise; with fewer heads each serves as many queries in a row (grouped-query attention).
        causal: whether token i sees tokens up to i only.
        rotate: turns queries or keys (..., tokens, d) by their positions, where the model does (rotary embeddings).
        labels: of the orbits.

    Returns:
        A row an orbit and head, with the labels of the orbits, `orbit` (its number) and `head`, and a value for each
        pair of successive recurrences: `ratio_mixed` and `ratio_frobenius`, change over bound, from 0 to 1 (NaN where
        the inputs do not change at all); `change`, ||dS||_F; `bound_mixed` and `bound_frobenius`. `TOO_SHORT`: fewer
        than two steps. `NOT_FINITE`: a state that is not.

    Raises:
        ValueError: shapes that do not fit, or a `rotate` that changes lengths.

    Misleads:
        The bound explains why attention settles when the state does, never how large its changes are: on random inputs
        ratios are 1e-4 to 1e-2. A ratio that falls along the loop says that changes turn to directions that attention
        does not see. Biases of queries and keys, norms on them, and soft-capped logits are not in the bound.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), proposition 4.2; the constant: Nair 2025 (arXiv 2510.23012). The mixed
        form and that for rotary positions are ours, by the same proof.

    Example:
        >>> import torch
        >>> from dynloop.maps.attention_stability import attention_stability
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> start, away = torch.randn(2, 1, 1, 16, 64, dtype=torch.float64)
        >>> inputs = start + away * 0.5 ** torch.arange(6)[:, None, None]
        >>> query, key = torch.randn(2, 64, 16, dtype=torch.float64) / 8
        >>> m = attention_stability(inputs, query, key)
        >>> bool((m["ratio_mixed"] < m["ratio_frobenius"]).any() or m["ratio_mixed"].max() > 1)
        False
    """
    for name, given in (("inputs", inputs), ("query", query), ("key", key)):
        check_tensor(name, given)
    query, key = (w[None] if w.ndim == 2 else w for w in (query, key))
    if inputs.ndim != 4 or query.ndim != 3 or key.ndim != 3 or query.shape[1:] != key.shape[1:] or \
            query.shape[1] != inputs.shape[-1] or not len(inputs) or len(query) % max(len(key), 1) or not len(key):
        raise ValueError("inputs must be (n, n_steps, tokens, features), query and key (heads, features, d), with the "
                         f"heads of the query a multiple of those of the key; got {tuple(inputs.shape)}, "
                         f"{tuple(query.shape)} and {tuple(key.shape)}. One orbit? Pass inputs[None].")
    (n, n_steps, n_tokens, _), heads, width = inputs.shape, len(query), query.shape[-1]
    query = query.to(inputs.device, torch.float64)
    key = key.to(inputs.device, torch.float64).repeat_interleave(heads // len(key), dim=0)
    later = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=inputs.device).triu(1)
    if rotate is None:
        product = query @ key.mT
        kappa = _norms(product, "fro"), _norms(product, 2)
    else:
        kappa = _norms(query, "fro") * _norms(key, "fro"), _norms(query, 2) * _norms(key, 2)
    table = {name: np.full((n, heads, max(n_steps - 1, 0)), np.nan)
             for name in ("ratio_mixed", "ratio_frobenius", "change", "bound_mixed", "bound_frobenius")}
    finite = torch.isfinite(inputs).flatten(1).all(-1).cpu().numpy()
    for o in np.flatnonzero(finite) if n_steps > 1 else ():
        before: tuple[torch.Tensor, ...] = ()
        for t in range(n_steps):  # one map a head in memory, and the one before it
            x = inputs[o, t].double()
            queries, keys = x @ query, x @ key
            if rotate is not None:
                queries, keys = (_turned(rotate, one) for one in (queries, keys))
            logits = queries @ keys.mT / math.sqrt(width)
            attention = (logits.masked_fill(later, -torch.inf) if causal else logits).softmax(-1)
            frobenius = _norms(x, "fro")
            here = x, attention, frobenius, frobenius if rotate is not None else _norms(x, 2)
            if before:
                step, change = _norms(x - before[0], "fro"), _norms(attention - before[1], "fro")
                bounds = (kappa[1] * (here[3] + before[3]) * step / (2 * math.sqrt(width)),
                          kappa[0] * torch.maximum(here[2], before[2]) * step / math.sqrt(width))
                for name, value in zip(table, (change / bounds[0], change / bounds[1], change, *bounds), strict=True):
                    table[name][o, :, t - 1] = value.cpu().numpy()
            before = here
    outcomes = np.full((n, heads), Outcome.FOUND if n_steps > 1 else Outcome.TOO_SHORT, dtype=object)
    outcomes[~finite] = Outcome.NOT_FINITE
    orbit, head = np.divmod(np.arange(n * heads), heads)
    if clash := sorted({"orbit", "head"} & set(labels or {})):
        raise ValueError(f"labels must not be called {' or '.join(clash)}: these number the rows. Rename yours.")
    return Measurement(
        "attention_stability", {name: values.reshape(n * heads, -1) for name, values in table.items()},
        outcomes.ravel(), settings={"causal": causal, "rotary": rotate is not None},
        labels={**{name: np.asarray(of)[orbit] for name, of in (labels or {}).items()}, "orbit": orbit, "head": head})


def _norms(matrices: torch.Tensor, order: Any) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrices, ord=order)


def _turned(rotate: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    turned = rotate(rows)
    if turned.shape != rows.shape or not torch.allclose(turned.double().norm(dim=-1), rows.norm(dim=-1), rtol=1e-3):
        raise ValueError("rotate must turn each row of (heads, tokens, d) and keep its length, as rotary positions do; "
                         f"it made {tuple(turned.shape)} of {tuple(rows.shape)} with other lengths. Leave scaling and "
                         "norms out of it.")
    return turned.double()
