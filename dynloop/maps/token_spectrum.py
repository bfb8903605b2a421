"""Which tokens of a sequence would move by themselves, and which are moved by others?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dynloop.maps.arguments import check_loop_map, check_tensor
from dynloop.maps.jacobian_spectrum import (
    JacobianChain,
    check_spectrum,
    default_tolerance,
    dense_eigenvalues,
    is_dense,
)
from dynloop.maps.krylov import chunks, leading_eigenvalues
from dynloop.maps.loop_map import LoopMap
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number

ROLES = ("source", "driven", "still")
_FOLLOWS = 1e-2  # a next state that lies farther than this from the given one, relative, is of another orbit


def token_spectrum(loop_map: LoopMap, states: torch.Tensor, contexts: torch.Tensor | None = None, *,
                   n_eigenvalues: int = 1, still: float = 1e-4, tolerance: float | None = None, dense_up_to: int = 256,
                   max_products: int = 500, rng: int | np.random.Generator = 0,
                   labels: Mapping[str, Any] | None = None) -> Measurement:
    """Spectral radius of every token's own block of the Jacobian, and whether the token moves by itself.

    The state of a token depends on no later token, so that the Jacobian of the sequence is block triangular, and its
    spectrum the union of the spectra of the blocks J_tt (features x features), the response of token t to itself. One
    Jacobian-vector product in which every token feels its own tangent alone (`LoopMap.own_token_jvps`) is a product
    with all blocks at once: all tokens' radii cost about as many products as the radius of the whole.

    Along an orbit x_1 -> ... -> x_s the blocks of the product of Jacobians are the products of the blocks. The radius
    is that of the product, to the power 1/s: exact for a fixed point (s = 1) and once round a cycle (s its period).

    * source: the own block is unstable (radius above 1), or the token moves and no token before it does: the orbit
      starts here;
    * driven: it moves, its own block is stable, and a token before it moves: attention moves it;
    * still: none of these.

    Args:
        loop_map: a causal map with states (tokens, features).
        states: (s, n, tokens, features): n sequences, s successive states of each. One state? Pass states[None].
        contexts: (n,) context of each sequence; by default sequence i is in context i modulo `n_contexts`.
        n_eigenvalues: eigenvalues of each block, the largest in modulus.
        still: a token moves where its largest step along the orbit, the one after the last state included, is more than
            this, relative to its norm or the median norm of the tokens, if that is larger.
        tolerance, rng: as in `jacobian_spectrum`.
        dense_up_to: features up to which the blocks are built.
        max_products: of a sequence; tokens that have not converged by then are given up.
        labels: of the sequences.

    Returns:
        A row a token, sequence by sequence, with the labels of the sequences, `sequence` (its number) and `token`:
        `radius`, a step; `role`, one of source, driven, still; `eigenvalues_real` and `eigenvalues_imag` (rows,
        n_eigenvalues) of the product along the orbit; `sequence_radius`, the largest radius of its sequence (NaN where
        a token has none), which is that of the whole Jacobian; `step`, the largest relative step; `residuals` (rows,
        n_eigenvalues), 0 where the blocks are built; `n_products`, of the sequence, each along all s states.
        `NOT_CONVERGED`: an eigenvalue missed the tolerance. `NOT_FINITE`: a state of the sequence, or the block.

    Raises:
        ValueError: the map is not causal, or not one of sequences; states that do not follow one another; settings.

    Misleads:
        Away from fixed points and cycles the product along s states is no asymptotic answer; and a token can be driven
        where its block is unstable by a hair. Where a loop crawls, all tokens move, and the first is the source: look
        at `step`. A token of a cycle that is a source has a stable block, since the cycle attracts. Bidirectional and
        prefix models have no own blocks.

    Source:
        The block-triangular structure is elementary linear algebra; the reading as sources is ours.

    Example:
        >>> import torch
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> from dynloop.maps.loop_map import LoopMap
        >>> from dynloop.maps.token_spectrum import token_spectrum
        >>> gain = torch.tensor([[0.5], [-1.8], [0.3]], dtype=torch.float64)
        >>> def step(x, contexts):
        ...     return torch.tanh(gain * x) + 0.2 * scaled_dot_product_attention(x, x, x, is_causal=True)
        >>> f = LoopMap(step, (3, 1), causal=True)
        >>> x = torch.ones(1, 3, 1, dtype=torch.float64)
        >>> for _ in range(400):
        ...     x = f(x)
        >>> m = token_spectrum(f, torch.stack([x, f(x)]))  # the second token swings with period 2, the third follows
        >>> print(m["role"])
        ['still' 'source' 'driven']
    """
    check_loop_map("loop_map", loop_map)
    check_tensor("states", states)
    if not loop_map.causal or len(loop_map.state_shape) != 2:
        raise ValueError(f"own blocks exist for causal maps with states (tokens, features); {loop_map.name} has states "
                         f"{loop_map.state_shape} and causal={loop_map.causal}. Use jacobian_spectrum.")
    n_tokens, dim = loop_map.state_shape
    check_spectrum(dim, n_eigenvalues, dense_up_to, max_products, "n_eigenvalues", 1)
    tolerance = default_tolerance(loop_map, tolerance)
    check_number("still", still, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-4)")
    seed = int(np.random.default_rng(rng).integers(2**31))
    orbit = JacobianChain([loop_map], states, contexts)
    n, n_rows = orbit.n, orbit.n * n_tokens
    step = _largest_step(orbit)
    finite = np.repeat(np.isfinite(step).all(1), n_tokens)  # 0 times NaN is NaN: masked attention spreads it, too
    values = np.full((n_rows, n_eigenvalues), complex(np.nan, np.nan))
    residuals, spent = np.full((n_rows, n_eigenvalues), np.nan), np.zeros((n, n_tokens))
    outcomes = np.full(n_rows, Outcome.NOT_CONVERGED, dtype=object)
    dense = is_dense(dim, dense_up_to)
    with orbit.held():
        for part in chunks(n, orbit.row_bytes(dim if dense else 48)):
            rows = np.arange(n_rows).reshape(n, n_tokens)[part].ravel()
            if dense:
                sequences = torch.arange(part.start, part.stop)
                unit = torch.eye(dim, dtype=orbit.states.dtype, device=orbit.states.device)
                columns = _own(orbit, sequences, unit[:, None, None].expand(-1, len(sequences), n_tokens, -1))
                blocks = columns.permute(1, 2, 3, 0).double().cpu().numpy().reshape(-1, dim, dim)
                finite[rows] &= np.isfinite(blocks).all((1, 2))
                for row, block in zip(rows, blocks, strict=True):
                    if finite[row]:
                        values[row], residuals[row] = dense_eigenvalues(block, n_eigenvalues), 0.0
                        outcomes[row] = Outcome.FOUND
                spent[part] = dim
            elif len(rows := rows[finite[rows]]):
                found = leading_eigenvalues(_operator(orbit, rows, n_tokens), len(rows), dim, k=n_eigenvalues,
                                            tolerance=tolerance, seed=seed, dtype=orbit.states.dtype,
                                            device=orbit.states.device, max_products=max_products)
                values[rows], residuals[rows], finite[rows] = found.values, found.residuals, found.finite
                outcomes[rows[found.converged]] = Outcome.FOUND
                np.maximum.at(spent, rows // n_tokens, found.products[:, None])
    outcomes[~finite] = Outcome.NOT_FINITE
    missing = outcomes != Outcome.FOUND
    values[missing] = complex(np.nan, np.nan)
    radius = (np.abs(values[:, 0]) ** (1 / len(orbit.states))).reshape(n, n_tokens)
    moves = step > still
    first = moves & (np.cumsum(moves, axis=1) == 1)
    role = np.where(first | (radius > 1), "source", np.where(moves, "driven", "still")).ravel().astype("<U6")
    role[missing] = ""
    sequence, token = np.divmod(np.arange(n_rows), n_tokens)
    if clash := sorted({"sequence", "token"} & set(labels or {})):
        raise ValueError(f"labels must not be called {' or '.join(clash)}: these number the rows. Rename yours.")
    step = np.where(missing, np.nan, step.ravel())
    return Measurement(
        "token_spectrum",
        {"radius": radius.ravel(), "role": role, "eigenvalues_real": values.real, "eigenvalues_imag": values.imag,
         "sequence_radius": np.where(missing, np.nan, radius.max(1)[sequence]), "step": step, "residuals": residuals,
         "n_products": spent.ravel()},
        outcomes, units={"radius": "per step", "sequence_radius": "per step"}, categories={"role": ROLES},
        settings={"n_eigenvalues": n_eigenvalues, "still": still, "tolerance": tolerance, "dense_up_to": dense_up_to,
                  "max_products": max_products},
        labels={**{name: np.asarray(of)[sequence] for name, of in (labels or {}).items()}, "sequence": sequence,
                "token": token})


def _largest_step(orbit: JacobianChain) -> np.ndarray:
    """Largest step of each token along the orbit, relative to its norm, (n, tokens); NaN where not finite."""
    loop_map, states = orbit.maps[0], orbit.states
    largest = torch.zeros(states.shape[1:3], dtype=torch.float64, device=states.device)
    for j, here in enumerate(states):
        ahead = loop_map(here, orbit.contexts).double()
        here = here.double()
        norms = here.norm(dim=-1)
        norms = torch.maximum(norms, norms.nanmedian(-1, keepdim=True).values)  # a token that goes to zero rests
        largest = torch.maximum(largest, (ahead - here).norm(dim=-1) / torch.where(norms > 0, norms, 1.0))
        if j + 1 < len(states):
            off = (ahead - states[j + 1].double()).norm(dim=(-2, -1)) / ahead.norm(dim=(-2, -1)).clamp_min(1e-300)
            if bool((off > _FOLLOWS).any()):
                i = int(off.nan_to_num().argmax())
                raise ValueError(f"states must follow one another; state {j + 2} of sequence {i} lies "
                                 f"{float(off[i]):.2g} of its norm from what {loop_map.name} makes of state {j + 1}. "
                                 "Give the states of one orbit, (steps, n, tokens, features).")
    return torch.where(torch.isfinite(largest), largest, torch.nan).cpu().numpy()


def _own(orbit: JacobianChain, sequences: torch.Tensor, tangents: torch.Tensor) -> torch.Tensor:
    """Products of all own blocks along the orbit with tangents (j, r, tokens, features)."""
    done = []
    for some in tangents.split(max(1, 2**22 // tangents[0].numel())):
        for states in orbit.states:
            some = orbit.maps[0].own_token_jvps(states[sequences.to(states.device)], some, orbit.contexts[sequences])[1]
        done.append(some)
    return torch.cat(done)


def _operator(orbit: JacobianChain, rows: np.ndarray, n_tokens: int) -> Any:
    """Products of some tokens' own blocks, as `leading_eigenvalues` wants them; the other tokens get no tangent."""
    places = torch.as_tensor(rows)

    def operator(own: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        sequences, which = torch.unique(places[own] // n_tokens, return_inverse=True)
        which, token = which.to(vectors.device), (places[own] % n_tokens).to(vectors.device)
        tangents = vectors.new_zeros(len(vectors), len(sequences), n_tokens, vectors.shape[-1])
        tangents[:, which, token] = vectors
        return _own(orbit, sequences, tangents)[:, which, token]

    return operator
