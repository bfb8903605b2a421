"""The contract of a live map."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynloop.maps.arguments import check_loop_map, check_repeats, check_tensor
from dynloop.maps.loop_map import LoopMap
from dynloop.settings import check_number
from dynloop.testing.condition import condition
from dynloop.testing.contract import Contract, claim, differ, hold

_ROWS, _TANGENTS = 3, 3
_DENSE = 64  # numbers in a state up to which the whole Jacobian is built
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)  # of central differences, over the size of states


@dataclasses.dataclass(frozen=True)
class _Subject:
    map: LoopMap
    states: torch.Tensor
    contexts: torch.Tensor
    tolerance: float

    def tangents(self, k: int) -> torch.Tensor:
        """(k, n, *state_shape), the same whenever they are asked for."""
        drawn = np.random.default_rng(0).normal(size=(k, *self.states.shape))
        return torch.from_numpy(drawn).to(self.states)

    def close(self, got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        """Relative to all of what is wanted."""
        size = max(float(wanted.double().norm()), torch.finfo(torch.float64).tiny)
        error = float((got.double() - wanted.double()).norm()) / size
        claim(error <= self.tolerance, f"{what} by {error:.3g} of its size, where {self.tolerance:.3g} is allowed")


def check_map(loop_map: LoopMap, states: torch.Tensor | None = None, *, contexts: Any = None,
              tolerance: float | None = None, only: Sequence[str] | None = None) -> None:
    """Hold a map to what dynloop relies on: independent rows, one answer to one question, exact derivatives.

    Args:
        loop_map: the map.
        states: (n, *state_shape) where it is tried, at least two and differentiable there; by default its initial
            states after one step, or else three drawn from a normal distribution.
        contexts: (n,) of the states, as the map takes them.
        tolerance: largest relative error of a derivative against central differences, and of what should be equal but
            for rounding; by default 1e-6 in float64, and 300 roundings (differences: their root) in other formats.
        only: some of the contracts, by their keys in `MAP_CONTRACTS`; all by default.

    Raises:
        AssertionError: the first contract that is broken, with what to do.
        TypeError: no map, or no tensor.
        ValueError: no such contract; fewer than two states.

    Misleads:
        It is tried at these states alone: a map with a kink may pass beside it. A derivative that is cut on purpose
        (straight-through rounding) is a broken one here.

    Source:
        The contract tests of dynloop.maps, which call this function.

    Example:
        >>> import torch
        >>> from dynloop import LoopMap
        >>> from dynloop.testing import check_map
        >>> check_map(LoopMap(lambda x, contexts: torch.tanh(2 * x), (3,)))
        >>> check_map(LoopMap(lambda x, contexts: x - x.mean(0), (3,)))
        Traceback (most recent call last):
        ...
        AssertionError: map breaks the contract 'rows': it must map every row as if it were alone; ...
    """
    check_loop_map("loop_map", loop_map)
    if tolerance is None:
        tolerance = 1e-6 if loop_map.dtype == torch.float64 else 300 * torch.finfo(loop_map.dtype).eps
    check_number("tolerance", tolerance, lambda v: 0 < v < 1, "a number between 0 and 1, or None")
    if states is None:
        if loop_map.live is not None and loop_map.live.model is not None:
            which = torch.arange(max(2, min(_ROWS, loop_map.n_contexts))) % loop_map.n_contexts
            contexts = which if contexts is None else contexts
            states = loop_map(loop_map.initial_states(which), which)
        else:
            states = torch.from_numpy(np.random.default_rng(1).normal(size=(_ROWS, *loop_map.state_shape)))
    check_tensor("states", states)
    states, contexts = loop_map._checked(states.detach(), contexts)
    if len(states) < 2:
        raise ValueError(f"states must be at least two, so that rows can be told apart; got {len(states)}.")
    hold(loop_map.name, _Subject(loop_map, states, contexts, tolerance), MAP_CONTRACTS, only)


def _shape(own: _Subject) -> None:
    following = own.map(own.states, own.contexts)  # which refuses another shape itself
    claim(following.dtype == own.map.dtype, f"it gave {following.dtype} for {own.map.dtype}")
    claim(following.device == own.states.device, f"it gave states on {following.device} for {own.states.device}")
    claim(following.isfinite().all(), "it gave numbers that are not finite for finite states")


def _repeats(own: _Subject) -> None:
    own.map.repeats = False
    check_repeats(own.map, own.states, own.contexts)
    first, second = (own.map(own.states, own.contexts) for _ in range(2))
    own.close(second, first, "the second answer differs from the first")


def _untouched(own: _Subject) -> None:
    before = own.states.clone()
    own.map(own.states, own.contexts)
    own.map.jvp(own.states, own.tangents(1)[0], own.contexts)
    claim(torch.equal(own.states, before), "they are others afterwards")


def _rows(own: _Subject) -> None:
    together = own.map(own.states, own.contexts)
    for i in range(len(own.states)):
        alone = own.map(own.states[i:i + 1], own.contexts[i:i + 1])
        own.close(together[i:i + 1], alone, f"row {i} of {len(own.states)} differs from what it is alone")
    spoilt = own.states.clone()
    spoilt[0] = torch.nan
    own.close(own.map(spoilt, own.contexts)[1:], together[1:], "rows beside one that is not finite differ")


def _contexts(own: _Subject) -> None:
    n = own.map.n_contexts
    states = own.states[:1].expand(n, *own.map.state_shape)
    ahead = own.map(states, torch.arange(n))
    back = own.map(states, torch.arange(n - 1, -1, -1))
    own.close(back.flip(0), ahead, "the answers in the contexts n - 1, ..., 0 differ from those in 0, ..., n - 1")


def _tangents(own: _Subject) -> None:
    v = own.tangents(1)[0]
    following, pushed = own.map.jvp(own.states, v, own.contexts)
    own.close(following, own.map(own.states, own.contexts), "next states beside a tangent differ from the map's own")
    eps = torch.finfo(own.map.dtype).eps
    allowed = own.tolerance if own.map.dtype == torch.float64 else max(own.tolerance, 10 * eps ** 0.5)
    scale = max(float(own.states.abs().amax()), eps) / max(float(v.abs().amax()), eps)
    errors = []
    for step in _STEPS if own.map.dtype == torch.float64 else (0.1, 0.03, 0.01, 1e-3):
        h = step * scale
        difference = (own.map(own.states + h * v, own.contexts).double()
                      - own.map(own.states - h * v, own.contexts).double()) / (2 * h)
        size = max(float(pushed.double().norm()), float(difference.norm()), torch.finfo(torch.float64).tiny)
        errors.append(float((difference - pushed.double()).norm()) / size)
    claim(min(errors) <= allowed, f"the product differs from central differences by {min(errors):.3g} of its size, "
                                  f"where {allowed:.3g} is allowed")


def _many(own: _Subject) -> None:
    tangents = own.tangents(_TANGENTS)
    together = own.map.jvps(own.states, tangents, own.contexts)[1]
    for j, v in enumerate(tangents):
        own.close(together[j], own.map.jvp(own.states, v, own.contexts)[1],
                  f"tangent {j} of {_TANGENTS} gives another product than alone")
    whole = own.map.jvp(own.states, 2 * tangents[0] - tangents[1], own.contexts)[1]
    own.close(whole, 2 * together[0] - together[1], "J (2 v - w) differs from 2 J v - J w")


def _adjoint(own: _Subject) -> None:
    v, w = own.tangents(2)
    ahead, back = own.map.jvp(own.states, v, own.contexts)[1], own.map.vjp(own.states, w, own.contexts)[1]
    a, b = float((w.double() * ahead.double()).sum()), float((back.double() * v.double()).sum())
    size = float(w.double().norm() * ahead.double().norm() + back.double().norm() * v.double().norm())
    claim(abs(a - b) <= own.tolerance * size, f"w . J v = {a:.9g}, and v . J^T w = {b:.9g}")


def _whole(own: _Subject) -> None:
    if own.map.dim > _DENSE:
        return
    v = own.tangents(1)[0]
    jacobians = own.map.jacobian(own.states, own.contexts)
    product = (jacobians @ v.flatten(1)[:, :, None])[:, :, 0].reshape(v.shape)
    own.close(own.map.jvp(own.states, v, own.contexts)[1], product, "J v differs from the whole Jacobian times v")


def _causal(own: _Subject) -> None:
    if not own.map.causal:
        return
    claim(len(own.map.state_shape) > 1, f"its states {own.map.state_shape} have no axis of tokens")
    later = own.states.clone()
    middle = max(1, own.map.state_shape[0] // 2)
    later[:, middle:] += own.tangents(1)[0][:, middle:]
    own.close(own.map(later, own.contexts)[:, :middle], own.map(own.states, own.contexts)[:, :middle],
              f"tokens before {middle} differ when later ones do")


def _unchanged(own: _Subject) -> None:
    before = condition(own.map.module)
    own.map(own.states, own.contexts)
    own.map.jvp(own.states, own.tangents(1)[0], own.contexts)
    own.map.vjp(own.states, own.tangents(1)[0], own.contexts)
    changed = differ(before, condition(own.map.module))
    claim(not changed, f"{changed} is another afterwards")


_ROUNDED = "Take what cuts or bends the derivative out of its code (rounding, in-place writes, another library)."
MAP_CONTRACTS: dict[str, Contract] = {
    "states": Contract("give finite states of the shape, dtype and device that it says it has",
                       "Make the LoopMap with the state_shape, dtype and device of its states, and try it at states "
                       "that it can map (states=).", _shape),
    "the same again": Contract("give the same answer to the same question",
                               "Switch its noise off, and keep no state between calls.", _repeats),
    "given states": Contract("leave the states that it is given as they are",
                             "Work on a copy instead of writing to them.", _untouched),
    "rows": Contract("map every row as if it were alone",
                     "Take no mean, norm or maximum over the first axis (batch normalisation, routing by capacity).",
                     _rows),
    "contexts": Contract("map row i in context contexts[i]",
                         "Index what stays fixed by the second argument, fixed[contexts], not by the row.", _contexts),
    "tangents": Contract("have a Jacobian-vector product that central differences confirm", _ROUNDED, _tangents),
    "many tangents": Contract("push many tangents as it pushes each alone, and linearly", _ROUNDED, _many),
    "cotangents": Contract("have a vector-Jacobian product that is the adjoint of the other", _ROUNDED, _adjoint),
    "jacobian": Contract("have a whole Jacobian that agrees with its products", _ROUNDED, _whole),
    "causality": Contract("let no token depend on a later one, since it says causal=True",
                          "Mask its attention, or make it with causal=False.", _causal),
    "the model": Contract("leave its module and all random states as they are",
                          "Put back in a finally clause what is set, and draw from a generator of your own.",
                          _unchanged)}
