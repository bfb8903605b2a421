"""Per-step statistics of the states as the model computed them, taken before they are cast for storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynloop.store import Store

NAMES = ("step_norm", "cosine", "state_norm", "two_orbit_distance")
_KEYS = ("prompt", "start", "layer", "token")


def per_step(states: torch.Tensor, *, n_starts: int = 1) -> dict[str, torch.Tensor]:
    """Statistics of states (rows, layers, tokens, recurrences, features), each (rows, layers, tokens, recurrences).

    step_norm[r] = |h_r - h_(r-1)|, cosine[r] = <h_r, h_(r-1)> / (|h_r| |h_(r-1)|), state_norm[r] = |h_r|, and with
    several starts two_orbit_distance[r] = |h_r - h'_r|, where h' is the first start of the same prompt. The first
    recurrence has no step, the first start no distance: NaN. Differences are taken in float32 (in float64 where the
    model computed so), sums in float64.

    Args:
        states: as the model computed them; consecutive rows are the starts of one prompt.
        n_starts: how many rows belong to one prompt.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    empty = torch.full(states.shape[:-1], torch.nan, dtype=torch.float64, device=states.device)
    found = {name: empty.clone() for name in NAMES[:3 + (n_starts > 1)]}

    def norm(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)

    for layer in range(states.shape[1]):  # one layer of one prompt in memory
        for row in range(states.shape[0]):
            x = states[row, layer].to(wide)
            size = found["state_norm"][row, layer] = norm(x)
            found["step_norm"][row, layer, :, 1:] = norm(x[:, 1:] - x[:, :-1])
            product = (x[:, 1:] * x[:, :-1]).sum(-1, dtype=torch.float64)
            found["cosine"][row, layer, :, 1:] = product / (size[:, 1:] * size[:, :-1])
            if row % n_starts:
                other = states[row - row % n_starts, layer].to(wide)
                found["two_orbit_distance"][row, layer] = norm(x - other)
    return {name: values.cpu() for name, values in found.items()}


def step_statistics(store: Store, **wanted: Any) -> Any:
    """The per-step statistics that `capture` took before the states were cast for storage, as an xarray dataset.

    Args:
        store: from `capture`.
        wanted: labels, such as layer=2, prompt=[0, 3].

    Returns:
        step_norm, cosine, state_norm (and two_orbit_distance where there are several starts), each (orbit, recurrence)
        in float64, with the labels of the store's orbits, in the order of its parts. Every recurrence is there, even
        where only some were stored; recurrences count from 1.

    Misleads: in a store of bfloat16 the states repeat long before the model does; these numbers do not. Below the
        spacing of the dtype in which the model computed they are rounding all the same.

    Raises:
        ValueError: a store of states that `capture` did not take.

    Example:
        >>> import tempfile
        >>> from dynloop import capture
        >>> from dynloop.recording import step_statistics
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = capture("nano-settles", ["import os"], out=folder + "/s", n_recurrences=4)
        ...     step_statistics(store, layer=2, token=8).step_norm.shape
        (1, 4)
    """
    import xarray

    rows: dict[tuple, dict[str, np.ndarray]] = {}
    for batch in store.inputs():
        if "step_norm" not in batch:
            continue
        values = {name: batch[name].numpy() for name in NAMES if name in batch}
        for r, (prompt, start) in enumerate(zip(batch["prompts"], batch["starts"], strict=True)):
            for la, layer in enumerate(batch["layers"]):
                for t, token in enumerate(batch["positions"]):
                    rows[prompt, start, layer, token] = {name: given[r, la, t] for name, given in values.items()}
    if not rows:
        raise ValueError(f"{store.folder} holds no statistics: it was made by `save`, or by dynloop before they were "
                         "taken. Capture again, or measure the states.")
    labels = store.labels
    chosen = np.ones(store.n_orbits, dtype=bool)
    for name, value in wanted.items():
        if name not in labels:
            raise ValueError(f"no label {name!r} in this store; it has {', '.join(labels)}.")
        chosen &= np.isin(labels[name], np.atleast_1d(value))
    if not chosen.any():
        raise ValueError("no orbit of this store has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + ".")
    labels = {name: values[chosen] for name, values in labels.items()}
    found = [rows[key] for key in zip(*(labels[name].tolist() for name in _KEYS), strict=True)]
    return xarray.Dataset({name: (("orbit", "recurrence"), np.stack([row[name] for row in found]))
                           for name in found[0]},
                          coords={**{name: ("orbit", values) for name, values in labels.items()},
                                  "recurrence": 1 + np.arange(found[0]["step_norm"].shape[-1])})
