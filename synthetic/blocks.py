"""Toy looped blocks as torch modules, whose cyclic fixed points, orbits and multipliers are known in closed form.

One recurrence is h -> f_k(... f_1(a(h, e))): an adapter a that lets the embedded prompt e in, and k layers. If this has
a fixed point, each rotation of the layers has one too, x_l = f_l(x_{l-1}), and all have the same nonzero multipliers
(Blayney et al. 2026, Prop. 4.1). Three builders, all in float64:

* `affine_block`: affine layers with prescribed multipliers, non-normal; the fixed points are linear solves;
* `turning_block`: residual layers with each placement of the norm, that contract onto a fixed point or a cycle;
* `drifting_block`: residual layers that add the same vector for ever: the direction freezes and nothing converges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dynloop import Trajectories
from dynloop.settings import check_number, check_whole
from synthetic.system import System

NORMS = ("none", "pre", "residual", "sandwich")
GOLDEN = (math.sqrt(5) - 1) / 2


def _norm(x: torch.Tensor) -> torch.Tensor:
    """To rms 1, without an epsilon: closed forms are exact."""
    return F.rms_norm(x, x.shape[-1:], eps=0.0)


class Circle(nn.Module):
    """Draws the states of one plane onto a circle, and its phases to the multiples of 2 pi / period."""

    plane: torch.Tensor

    def __init__(self, plane: torch.Tensor, radius: float, rate: float, period: int | None) -> None:
        super().__init__()
        self.register_buffer("plane", plane)  # (2, width), orthonormal
        self.radius, self.rate, self.period = radius, rate, period

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is to be added to x (..., width)."""
        z = x @ self.plane.T
        radius, phase = z.norm(dim=-1), torch.atan2(z[..., 1], z[..., 0])
        if self.period is not None:  # multiplier 1 - (1 - rate) cos(0) = rate at the locked phases
            phase = phase - (1 - self.rate) / self.period * torch.sin(self.period * phase)
        radius = self.radius + self.rate * (radius - self.radius)
        drawn = radius[..., None] * torch.stack((torch.cos(phase), torch.sin(phase)), dim=-1)
        return (drawn - z) @ self.plane


class Layer(nn.Module):
    """x + U(x) with U(y) = weight y + bias, and a norm n (none | pre: x + U(n(x)) | residual: n(x + U(x)), as Huginn |
    sandwich: x + gain n(U(n(x))), as Ouro).
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, norm: str, *, gain: float = 1.0,
                 circle: Circle | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.norm, self.gain, self.circle = norm, gain, circle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _norm(x) if self.norm in ("pre", "sandwich") else x
        update = y @ self.weight.T + self.bias
        if self.circle is not None:
            update = update + self.circle(y + update)
        if self.norm == "sandwich":
            update = self.gain * _norm(update)
        x = x + update
        return _norm(x) if self.norm == "residual" else x


class Block(nn.Module):
    """One recurrence: an adapter a(h, e) = keep h + let_in e, then the layers.

    Attributes:
        name, norm, width, n_layers: what it is.
        period: recurrences after which its limit repeats: 1 for a fixed point, None where nothing repeats.
        exact: closed-form answers for prompt 0, by the names of a `System`.
    """

    keep: torch.Tensor
    let_in: torch.Tensor

    def __init__(self, name: str, layers: Sequence[Layer], keep: torch.Tensor, let_in: torch.Tensor, *,
                 period: int | None, embed: Callable[[np.ndarray], np.ndarray],
                 limits: Callable[[torch.Tensor], torch.Tensor] | None, exact: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.register_buffer("let_in", let_in)
        self.layers = nn.ModuleList(layers)
        self.name, self.period, self.exact = name, period, exact
        self._embed, self._limits = embed, limits
        self.norm, self.width, self.n_layers = layers[0].norm, len(keep), len(layers)

    def embed(self, prompts: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embedded prompts (n, width), each known by its number."""
        return torch.as_tensor(self._embed(np.asarray(prompts)), dtype=self.keep.dtype)

    def adapter(self, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        return state @ self.keep.T + embedded @ self.let_in.T

    def layer_states(self, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """States after every layer of one recurrence, (..., n_layers, width); the last one is the next loop state."""
        state = self.adapter(state, embedded)
        states = [state := layer(state) for layer in self.layers]
        return torch.stack(states, dim=-2)

    def forward(self, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """One recurrence, (..., width) -> (..., width)."""
        state = self.adapter(state, embedded)
        for layer in self.layers:
            state = layer(state)
        return state

    def limits(self, embedded: torch.Tensor) -> torch.Tensor:
        """Exact states after every layer on the limit, one period long: (n, period, n_layers, width).

        Raises:
            ValueError: the block has no limit that repeats.
        """
        if self._limits is None:
            raise ValueError(f"{self.name} has no fixed point or cycle; its regime is {self.exact['regime']}.")
        return self._limits(embedded)

    def layer_jacobians(self, embedded: torch.Tensor) -> torch.Tensor:
        """Jacobians of the layers on the limit of one prompt (width,): (period, n_layers, width, width).

        The first layer's includes the adapter; each is taken at the exact state that enters it.
        """
        limits = self.limits(embedded[None])[0]
        before = torch.cat((limits[:, -1:].roll(1, dims=0), limits[:, :-1]), dim=1)  # what enters each layer

        def first(state: torch.Tensor) -> torch.Tensor:
            return self.layers[0](self.adapter(state, embedded))

        maps = [first, *self.layers[1:]]
        return torch.stack([torch.stack([torch.func.jacrev(f)(x) for f, x in zip(maps, row, strict=True)])
                            for row in before])

    def multipliers(self, embedded: torch.Tensor, *, layer: int | None = None) -> np.ndarray:
        """Multipliers (width,) of the limit of one prompt, over its period, seen after `layer` (the last by default).

        Eigenvalues of the product of the layers' Jacobians, beginning after that layer; largest modulus first.
        """
        at = self.n_layers if layer is None else layer
        check_whole("layer", at, 1, f"a layer from 1 to {self.n_layers}")
        if at > self.n_layers:
            raise ValueError(f"layer must be a layer from 1 to {self.n_layers}; got {layer!r}.")
        product = torch.eye(self.width, dtype=self.keep.dtype)
        for jacobian in self.layer_jacobians(embedded).flatten(0, 1).roll(-at, dims=0):
            product = jacobian @ product
        return _by_modulus(np.linalg.eigvals(product.numpy()))


def _by_modulus(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=complex)
    return values[np.lexsort((-values.imag, -values.real, -np.abs(values).round(12)))]


def _orthonormal(rng: np.random.Generator, width: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def _turn(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _check_layers(n_layers: Any, rate: Any, angle: Any, seed: Any) -> None:
    check_whole("n_layers", n_layers, 1, "a whole number of layers, such as 4")
    check_number("rate", rate, lambda v: 0 < v < 1, "a factor a recurrence between 0 and 1")
    check_number("angle", angle, math.isfinite, "a finite angle a recurrence, in radians")
    check_whole("seed", seed, 0, "a whole number of at least 0")


def affine_block(*, width: int = 16, n_layers: int = 4, rate: float = 0.8, angle: float = 1.0,
                 degenerate: bool = False, seed: int = 0) -> Block:
    """Layers x -> A_l x + b_l with prescribed multipliers, and e added at the start of each recurrence.

    A_l = B_l D_l B_{l-1}^-1 with well-conditioned random B_l, B_k = B_0, and block-diagonal D_l, so that every rotation
    of the product has the multipliers of D_k ... D_1: rate e^{+-i angle}, then real ones from 0.9 rate down, and two
    zeros. The layers are contractions in the long run, not in every step (A_l is non-normal).

    Args:
        width: at least 4.
        n_layers: layers a recurrence.
        rate: modulus of the leading multipliers, a recurrence.
        angle: their argument, radians a recurrence.
        degenerate: no injection, and biases that put all layers onto one point, at which every update vanishes.
        seed: decides all weights.

    Example:
        >>> from synthetic.blocks import affine_block
        >>> block = affine_block(width=6)
        >>> abs(block.multipliers(block.embed([0])[0], layer=2)).round(6).tolist()
        [0.8, 0.8, 0.72, 0.36, 0.0, 0.0]
    """
    _check_layers(n_layers, rate, angle, seed)
    check_whole("width", width, 4, "a whole number of at least 4")
    if not isinstance(degenerate, bool):
        raise ValueError(f"degenerate must be true or false; got {degenerate!r}.")
    rng = np.random.default_rng(seed)
    real = np.r_[0.9 * rate * np.linspace(1, 0.5, width - 4), 0.0, 0.0]
    bases = [_orthonormal(rng, width) @ (np.eye(width) + 0.3 * rng.normal(size=(width, width)) / math.sqrt(width))
             for _ in range(n_layers)]
    shares = rng.dirichlet(np.full(n_layers, 5.0))
    matrices, biases = [], []
    fixed = rng.normal(size=width)
    for layer, share in enumerate(shares):
        diagonal = np.diag(np.r_[0.0, 0.0, real**share])
        diagonal[:2, :2] = rate**share * _turn(angle * share)
        matrices.append(bases[(layer + 1) % n_layers] @ diagonal @ np.linalg.inv(bases[layer]))
        biases.append(fixed - matrices[-1] @ fixed if degenerate else rng.normal(size=width))
    layers = [Layer(torch.from_numpy(a - np.eye(width)), torch.from_numpy(b), "none")
              for a, b in zip(matrices, biases, strict=True)]

    def limits(embedded: torch.Tensor) -> torch.Tensor:
        injected = np.zeros(embedded.shape) if degenerate else embedded.double().numpy()
        points = []
        for layer in range(1, n_layers + 1):  # each rotation for itself: x = product x + constant
            product, constant = np.eye(width), np.zeros_like(injected)
            for at in np.roll(np.arange(n_layers), -layer):
                if at == 0:
                    constant = constant + injected
                product, constant = matrices[at] @ product, constant @ matrices[at].T + biases[at]
            points.append(np.linalg.solve(np.eye(width) - product, constant.T).T)
        return torch.from_numpy(np.stack(points, axis=1)[:, None])

    multipliers = _by_modulus(np.r_[rate * np.exp([1j * angle, -1j * angle]), real])
    name = f"affine block rate={rate:g}{' degenerate' if degenerate else ''}"
    exact = {"regime": "fixed point", "rate": rate, "spectral_radius": rate, "multipliers": multipliers,
             "lyapunov": _logs(multipliers)}
    block = Block(name, layers, torch.eye(width, dtype=torch.float64),
                  (0.0 if degenerate else 1.0) * torch.eye(width, dtype=torch.float64), period=1,
                  embed=lambda prompts: _by_prompt(prompts, seed, width), limits=limits, exact=exact)
    exact["fixed_point"] = block.limits(block.embed([0]))[0, 0, -1].numpy()
    return block


def turning_block(*, norm: str = "residual", width: int = 32, n_layers: int = 4, rate: float = 0.8,
                  angle: float = 1.0, period: int | None = None, orbit: float = 0.0, spread: float = 0.5,
                  injection: bool = True, seed: int = 0) -> Block:
    r"""Residual layers that turn the state, with a norm, around an adapter that contracts it: fixed point or orbit.

    In a random orthonormal basis the state has a half that no layer touches, a quarter that layer l turns by phi_l
    (together 2 pi, so that the layers' fixed points go round a polygon and close), and planes that layer l turns by
    theta_l (together `angle`). The adapter is a(h, e) = rate h + (1 - rate) e. Prompts have norm sqrt(width), where all
    norms act as identities, so that the fixed point after layer l is e with its second part turned by
    phi_1 + ... + phi_l, whatever the norm. Multipliers, all exact: rate, and rate e^{+-i angle} in the planes; but one
    of the former is, with the norm
        none      rate
        pre       rate prod_l (1 - spread^2 (1 - cos phi_l)), less the nearer the layers' fixed points lie: a degenerate
                  pre-norm block does not draw back the norm of its state at all, the adapter alone does
        residual  0: the norm is fixed by the norm
        sandwich  rate prod_l cos phi_l

    Args:
        norm: none, pre, residual (Huginn) or sandwich (Ouro); see `Layer`.
        width: a multiple of 8.
        n_layers: layers a recurrence.
        rate: factor a recurrence by which the adapter contracts, and a circle attracts.
        angle: radians a recurrence by which the planes turn; 2 pi / period where there is a period.
        period: recurrences after which an orbit repeats exactly. None with an orbit: quasi-periodic by `angle`.
        orbit: radius of the limit circle over sqrt(width), below 1; 0 for a fixed point. The last layer draws the first
            plane onto the circle (multiplier `rate`) and, with a period, onto the nearest of `period` phases (again
            `rate`; without norms the multipliers of the cycle are all rate^period in modulus).
        spread: share of the prompt's norm that turns from layer to layer: successive fixed points lie
            2 sin(phi_l / 2) spread apart, over their norm. 0 is degenerate: all layers sit at the same point, and their
            updates vanish there.
        injection: False replaces every prompt by one constant, so that the limit forgets the prompt.
        seed: decides weights and prompts.

    Raises:
        ValueError: settings that do not go together. A sandwich layer moves its state by a length that is fixed, so
            that a layer whose update should vanish cannot exist.

    Example:
        >>> import torch
        >>> from synthetic.blocks import turning_block
        >>> block = turning_block(norm="sandwich")
        >>> e = block.embed([0, 1, 2])
        >>> after = block.layer_states(block.limits(e)[:, 0, -1], e)  # one recurrence from the fixed points
        >>> bool(torch.allclose(after, block.limits(e)[:, 0]))
        True
    """
    _check_layers(n_layers, rate, angle, seed)
    if not isinstance(norm, str) or norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}. Choose one of these.")
    check_whole("width", width, 8, "a multiple of 8")
    if width % 8:
        raise ValueError(f"width must be a multiple of 8; got {width!r}.")
    check_number("orbit", orbit, lambda v: 0 <= v < 1, "a radius of at least 0 and below 1")
    check_number("spread", spread, lambda v: v >= 0 and v**2 + orbit**2 < 1,
                 f"a share of at least 0 with spread^2 + orbit^2 below 1 (orbit={orbit!r})")
    if not isinstance(injection, bool):
        raise ValueError(f"injection must be true or false; got {injection!r}.")
    if period is not None:
        check_whole("period", period, 2, "a whole number of at least 2 recurrences, or None")
        if not orbit:
            raise ValueError(f"a period belongs to an orbit; got period={period!r} and orbit=0. Give orbit=0.3, or "
                             "leave the period out.")
        angle = 2 * math.pi / period
    rng = np.random.default_rng(seed)
    half, quarter = width // 2, width // 4
    basis = _orthonormal(rng, width)  # columns: common half, turning quarter, planes
    shares = rng.dirichlet(np.full(n_layers, 5.0)) if n_layers > 1 else np.ones(1)
    turns, angles = 2 * math.pi * shares, angle * shares
    scale = math.sqrt(width)
    gains = np.hypot(2 * np.sin(turns / 2) * spread, 2 * np.sin(angles / 2) * orbit)
    if norm == "sandwich" and (gains < 1e-9).any():
        raise ValueError("a sandwich layer moves its state by a fixed length and cannot rest; got "
                         f"n_layers={n_layers}, spread={spread!r}, orbit={orbit!r}. Take at least two layers with a "
                         "spread, or an orbit.")
    plane = torch.from_numpy(basis[:, half + quarter:half + quarter + 2].T.copy())
    circle = Circle(plane, orbit * scale, rate, period) if orbit else None
    layers = []
    for layer in range(n_layers):
        turned = np.kron(np.eye(quarter // 2), _turn(turns[layer])), np.kron(np.eye(quarter // 2), _turn(angles[layer]))
        inside = np.eye(width)
        inside[half:half + quarter, half:half + quarter], inside[half + quarter:, half + quarter:] = turned
        weight = basis @ (inside - np.eye(width)) @ basis.T
        layers.append(Layer(torch.from_numpy(weight), torch.zeros(width, dtype=torch.float64), norm,
                            gain=float(gains[layer]), circle=circle if layer == n_layers - 1 else None))
    kept = np.full(width, rate)
    if orbit:
        kept[half + quarter:half + quarter + 2] = 1.0
    keep = torch.from_numpy(basis @ np.diag(kept) @ basis.T)
    let_in = (1 - rate) * torch.eye(width, dtype=torch.float64)

    def embed(prompts: np.ndarray) -> np.ndarray:
        x = _by_prompt(prompts if injection else np.zeros_like(prompts), seed, width)
        x = x - x @ basis[:, half + quarter:] @ basis[:, half + quarter:].T
        inside = x @ basis
        for part, norm_of_part in ((slice(0, half), math.sqrt(1 - spread**2 - orbit**2)),
                                   (slice(half, half + quarter), spread)):
            inside[:, part] *= scale * norm_of_part / np.linalg.norm(inside[:, part], axis=1, keepdims=True)
        return inside @ basis.T

    def limits(embedded: torch.Tensor) -> torch.Tensor:
        inside = embedded.double().numpy() @ basis
        found = np.empty((len(inside), period or 1, n_layers, width))
        for t in range(period or 1):
            for layer in range(n_layers):
                x = inside.copy()
                turned = np.kron(np.eye(quarter // 2), _turn(turns[:layer + 1].sum()))
                x[:, half:half + quarter] = x[:, half:half + quarter] @ turned.T
                phase = angle * t + angles[:layer + 1].sum() - angle  # 0 after the last layer of recurrence 0
                x[:, half + quarter:half + quarter + 2] = orbit * scale * np.array([math.cos(phase), math.sin(phase)])
                found[:, t, layer] = x
        return torch.from_numpy(found @ basis.T)

    repeats = bool(period) or not orbit
    name = f"block norm={norm} rate={rate:g}"
    exact: dict[str, Any]
    if not orbit:
        special = {"none": 1.0, "pre": float(np.prod(1 - spread**2 * (1 - np.cos(turns)))), "residual": 0.0,
                   "sandwich": float(np.prod(np.cos(turns)))}[norm]
        planes = np.exp(1j * angle * np.tile([1, -1], quarter // 2))
        multipliers = rate * np.r_[np.ones(half + quarter - 1), special, planes]
        exact = {"regime": "fixed point", "rate": rate, "multipliers": _by_modulus(multipliers),
                 "lyapunov": _logs(multipliers)}
    elif period:
        exact = {"regime": "orbit", "period": period, "rotation": 1 / period}
        if norm == "none":
            planes = rate * np.exp(1j * angle * np.tile([1, -1], quarter // 2 - 1))
            per_step = np.r_[np.full(half + quarter, rate), rate, rate, planes]
            exact |= {"rate": rate, "multipliers": _by_modulus(per_step**period), "lyapunov": _logs(per_step)}
    else:
        exact = {"regime": "quasi-periodic", "rotation": angle / (2 * math.pi) % 1}
        if norm == "none":
            exact["lyapunov"] = (0.0, *_logs(np.full(width - 1, rate)))
    name += f" period={period}" if period else " quasi-periodic" if orbit else ""
    name += " degenerate" if spread == 0 else ""
    block = Block(name, layers, keep, let_in, period=(period or 1) if repeats else None, embed=embed,
                  limits=limits if repeats else None, exact=exact)
    if not orbit:
        exact["fixed_point"] = block.limits(block.embed([0]))[0, 0, -1].numpy()
    return block


def drifting_block(*, norm: str = "pre", width: int = 16, n_layers: int = 2, speed: float = 1.0,
                   seed: int = 0) -> Block:
    """Residual layers whose update does not depend on the state: h grows by one vector a recurrence, for ever.

    The cosine to the last state goes to 1 and the relative step to 0 as 1/t, as if the state settled; its norm grows
    without bound. Norms around the residual would stop it, so that only "none", "pre" and "sandwich" drift. There is no
    injection.

    Args:
        norm: none, pre or sandwich.
        width: at least 2.
        n_layers: layers a recurrence, each with its own direction.
        speed: distance a recurrence.
        seed: decides the directions.
    """
    _check_layers(n_layers, 0.5, 0.0, seed)
    check_whole("width", width, 2, "a whole number of at least 2")
    check_number("speed", speed, lambda v: 0 < v < math.inf, "a positive, finite distance")
    if not isinstance(norm, str) or norm not in NORMS or norm == "residual":
        raise ValueError(f"norm must be one of none, pre, sandwich; got {norm!r}. A norm around the residual keeps the "
                         "state on a sphere, where nothing drifts.")
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(n_layers, width))
    updates *= speed / np.linalg.norm(updates.sum(0))
    zero = torch.zeros(width, width, dtype=torch.float64)
    layers = [Layer(zero, torch.from_numpy(u), norm, gain=float(np.linalg.norm(u)) / math.sqrt(width)) for u in updates]
    return Block(f"drifting block norm={norm} speed={speed:g}", layers, torch.eye(width, dtype=torch.float64), zero,
                 period=None, embed=lambda prompts: _by_prompt(prompts, seed, width), limits=None,
                 exact={"regime": "slider", "speed": speed})


def _by_prompt(prompts: np.ndarray, seed: int, width: int) -> np.ndarray:
    """Independent standard normal numbers for each prompt, whichever others are asked for."""
    return np.stack([np.random.default_rng([seed, int(p)]).normal(size=width) for p in prompts])


def _logs(multipliers: Any) -> tuple[float, ...]:
    with np.errstate(divide="ignore"):
        return tuple(map(float, np.sort(np.log(np.abs(multipliers)))[::-1]))


def record_layers(block: Block, n_prompts: int, n_steps: int, *, n_starts: int = 1, dtype: str = "float64",
                  rng: Any = 0) -> Trajectories:
    """The states after every layer and recurrence, as `dynloop.capture` leaves them.

    Orbits start from standard normal numbers, run in `dtype` throughout (weights and arithmetic) and are stored so.

    Args:
        block: any block of this file.
        n_prompts, n_starts: prompts 0, 1, ... and the starts of each.
        n_steps: recurrences. The first state is that after the first recurrence.
        dtype: float64, float32, bfloat16 or float16.
        rng: seed or generator of the starts.

    Returns:
        (n_prompts * n_starts * n_layers, n_steps, width), layers varying fastest. Labels: model, regime, prompt, orbit
        (one number a prompt and start) and layer, counted from 1; the last layer is the loop state.
    """
    if not isinstance(block, Block):
        raise ValueError(f"block must be a Block of this file; got {type(block).__name__}. Build one, for example with "
                         "turning_block().")
    for name, value in (("n_prompts", n_prompts), ("n_steps", n_steps), ("n_starts", n_starts)):
        check_whole(name, value, 1, "a whole number of at least 1")
    if dtype not in ("float64", "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16; got {dtype!r}.")
    own = copy.deepcopy(block).to(getattr(torch, dtype))
    prompts = np.repeat(np.arange(n_prompts), n_starts)
    embedded = block.embed(prompts).to(own.keep.dtype)
    state = torch.from_numpy(np.random.default_rng(rng).normal(size=embedded.shape)).to(own.keep.dtype)
    states = torch.empty(len(prompts), block.n_layers, n_steps, block.width, dtype=own.keep.dtype)
    with torch.no_grad():
        for t in range(n_steps):
            states[:, :, t] = own.layer_states(state, embedded)
            state = states[:, -1, t]
    orbits = np.arange(len(prompts))
    return Trajectories(states.flatten(0, 1), labels={
        "model": block.name, "regime": block.exact["regime"], "prompt": prompts.repeat(block.n_layers),
        "orbit": orbits.repeat(block.n_layers), "layer": np.tile(np.arange(1, block.n_layers + 1), len(orbits))})


def as_system(block: Block) -> System:
    """The loop of one block on prompt 0, from standard normal starts."""
    embedded = block.embed([0])[0]

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        with torch.no_grad():
            return block(torch.from_numpy(states), embedded).numpy()

    return System(block.name, block.width, lambda rng, n: rng.normal(size=(n, block.width)), step,
                  transient=200 if block.exact["regime"] in ("orbit", "quasi-periodic") else 0, exact=block.exact)


SYSTEMS = tuple(as_system(block) for block in (
    affine_block(), affine_block(degenerate=True),
    *(turning_block(norm=norm) for norm in NORMS),
    *(turning_block(norm=norm, spread=0.0) for norm in ("none", "pre", "residual")),
    *(turning_block(norm=norm, period=7, orbit=0.3) for norm in NORMS),
    *(turning_block(norm=norm, angle=2 * math.pi * GOLDEN, orbit=0.3) for norm in NORMS),
    *(drifting_block(norm=norm) for norm in ("pre", "sandwich")),
))
