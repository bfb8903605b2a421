"""Any system, or any states, as the recording that a looped model would leave: wide, offset, noisy and rounded."""

from __future__ import annotations

import dataclasses
import math
import numbers
import sys
from typing import Any

import numpy as np
import torch

from dynloop import Trajectories
from dynloop.settings import check_number, check_whole
from synthetic.system import System

FORMATS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NARROWER = ("float32", "bfloat16", "float16")  # than float64, in which systems step
AMPLITUDES = ("orbit", "start")
_SETTLING = ("fixed point", "converging")
_BLOCK_BYTES = 64 * 2**20  # of embedded states in float64
_AT_REST = 1e-9  # a movement of this share of the states' norm is rounding, not movement


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """The way from a system's states x (..., d) to a model's h (..., dim): h = matrix (x - centre) + offset.

    Args:
        matrix: (dim, d); an orthonormal frame over the amplitude. With anisotropy its massive rows are longer.
        centre: (d,), the state that lands on `offset`.
        offset: (dim,), common to all states.
        amplitude: extent of the orbits in the system's units, which has become one.
    """

    matrix: np.ndarray
    centre: np.ndarray
    offset: np.ndarray
    amplitude: float

    def embed(self, states: np.ndarray) -> np.ndarray:
        """(..., d) -> (..., dim)."""
        return (states - self.centre) @ self.matrix.T + self.offset

    def unembed(self, states: np.ndarray) -> np.ndarray:
        """(..., dim) -> (..., d), by least squares: what lies outside the frame is dropped."""
        return (states - self.offset) @ np.linalg.pinv(self.matrix).T + self.centre


def record(source: System | np.ndarray, n_orbits: int | None = None, n_steps: int | None = None, *, dim: int = 256,
           offset: float = 3.0, anisotropy: float = 1.0, n_massive: int | None = None,
           amplitude: str | float | None = None, noise: float = 0.0, dynamical_noise: float = 0.0,
           storage: str = "float32", computed_in: str | None = None, allow_collapse: bool = False,
           rng: Any = 0) -> Trajectories:
    """Orbits of a system in a space as wide as a model's, with a model's offset, noise and rounding.

    h = E (x - centre) / A + offset u, with E a random orthonormal frame (dim, d), u a random unit vector and A the
    *amplitude* of the orbits, so that the recorded orbits move by one. Every level below is a multiple of this unit:

    * "orbit": A = rms distance of the states from their own orbit's mean, over all orbits and steps;
    * "start": A = rms distance of the first states from their limits (the known fixed point, or else the last states),
      because the rms of an orbit that settles depends on how long one looks on;
    * a number: A in the system's units; the only choice for orbits at rest.

    Args:
        source: a system; or states (n, T, d) that somebody has made.
        n_orbits, n_steps: of a system (states have their own).
        dim: width of the recorded states, at least d.
        offset: norm of the mean (or of the limit) of the recorded states, in amplitudes.
        anisotropy: factor by which `n_massive` coordinates exceed the others in offset and in movement: massive
            activations. Amplitude and offset stay as asked. The embedding stays linear, so that periods, rates and
            exponents stay exact, but it is no longer isometric.
        n_massive: how many; 3 unless told otherwise. Goes with anisotropy.
        amplitude: "orbit", "start" or a number, see above. By default "start" for systems that are known to settle
            (regime "fixed point" or "converging"), and "orbit" for everything else.
        noise: observation noise. Independent Gaussian numbers of one variance are added to all `dim` coordinates of
            every recorded state, so that the noise vector's rms norm over the amplitude is `noise`: 0.05 is a vector
            of 5 % of the orbit's extent, and 0.05 / sqrt(dim) a coordinate.
        dynamical_noise: noise in the loop. Each step is kicked in all d coordinates of the system by a Gaussian vector
            whose rms norm, seen in the recording, is `dynamical_noise` amplitudes of the undisturbed orbits (exactly
            so without anisotropy). The transient is kicked too. Kicks, like rounding inside the loop, may throw an
            orbit out of its basin: it diverges (the logistic map at r = 4 does) and is cut.
        storage: number format of the recorded states. What it cannot hold becomes infinite and ends the orbit.
        computed_in: number format of the loop. The wide state is rounded to it after every step, transient included,
            and the next step starts from the rounded state: h' = round(embed(step(unembed(h)))), the rule itself in
            float64. By default nothing is rounded inside the loop.
        allow_collapse: permits `computed_in` for a system that is marked `float64_only`.
        rng: seed or generator. The orbits are those of `system.orbits(n_orbits, n_steps, rng=rng)`; frame, offset and
            noises have streams of their own, so that one changes without the others.

    Returns:
        The recording; its resolution is the coarser one of `computed_in` and `storage`. Labels: orbit; seed, where
        `rng` is a whole number; of a system its name (system), family ("" if none), regime ("" if unknown), and the
        exact period and rate (NaN where there is none). They are the truth of the undisturbed system.

    Raises:
        ValueError: a setting that is out of range, or that would change nothing.

    Example:
        >>> import numpy as np
        >>> from synthetic.recordings import record
        >>> angle = 2 * np.pi / 7 * np.arange(64)
        >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)[None]
        >>> record(circle, dim=512, noise=0.05, storage="bfloat16")
        Trajectories(1 orbits of 64 steps in 512 dimensions, bfloat16; labels: orbit, seed)
    """
    _check(source, dim, offset, anisotropy, n_massive, amplitude, noise, dynamical_noise, storage, computed_in,
           allow_collapse)
    seed = {"seed": int(rng)} if isinstance(rng, numbers.Integral) and not isinstance(rng, bool) else {}
    generator = np.random.default_rng(rng)
    of_frame, of_offset, of_noise, of_kicks, again = *generator.spawn(4), _twin(generator)
    if isinstance(source, System):
        n_orbits, n_steps = _counts(n_orbits, n_steps)
        with np.errstate(over="ignore", invalid="ignore"):
            states = source.orbits(n_orbits, n_steps, rng=generator)
    else:
        states = _given(source, n_orbits, n_steps)
        n_orbits, n_steps = states.shape[:2]
    if dim < states.shape[2]:
        raise ValueError(f"dim must be at least the {states.shape[2]} dimensions of the states; got {dim}.")
    embedding = _embedding(source, states, dim, offset, anisotropy, 3 if n_massive is None else n_massive, amplitude,
                           of_frame, of_offset)
    if isinstance(source, System) and computed_in is not None:
        states = _run(source, n_orbits, n_steps, embedding, dynamical_noise, of_kicks, again, FORMATS[computed_in])
    elif isinstance(source, System) and dynamical_noise:
        states = _run(source, n_orbits, n_steps, embedding, dynamical_noise, of_kicks, again, None)
    recorded = torch.empty((n_orbits, n_steps, dim), dtype=FORMATS[storage])
    block = max(1, _BLOCK_BYTES // (8 * n_steps * dim))
    for first in range(0, n_orbits, block):
        part: Any = states[first:first + block]
        with np.errstate(over="ignore", invalid="ignore"):
            part = part.double().numpy() if isinstance(part, torch.Tensor) else embedding.embed(part)
            if noise:
                part = part + noise / math.sqrt(dim) * of_noise.standard_normal(part.shape)
        recorded[first:first + block] = torch.from_numpy(part).to(FORMATS[storage])
    resolution = max(torch.finfo(FORMATS[f]).eps for f in (storage, computed_in) if f is not None)
    labels = {**_labels(source), "orbit": np.arange(n_orbits), **seed}
    return Trajectories(recorded, labels=labels, resolution=resolution)


def _check(source: Any, dim: Any, offset: Any, anisotropy: Any, n_massive: Any, amplitude: Any, noise: Any,
           dynamical_noise: Any, storage: Any, computed_in: Any, allow_collapse: Any) -> None:
    check_whole("dim", dim, 1, "a whole number of dimensions, such as 256")
    for name, value in (("offset", offset), ("noise", noise), ("dynamical_noise", dynamical_noise)):
        check_number(name, value, lambda v: 0 <= v < math.inf, "a finite number of amplitudes, at least 0")
    check_number("anisotropy", anisotropy, lambda v: 1 <= v < math.inf, "a finite factor of at least 1 (none)")
    if n_massive is not None:
        check_whole("n_massive", n_massive, 1, f"a whole number from 1 to dim - 1 = {dim - 1}")
        if anisotropy == 1:
            raise ValueError(f"n_massive changes nothing without anisotropy; got n_massive={n_massive!r} and "
                             "anisotropy=1. Give an anisotropy such as 30, or leave n_massive out.")
    if anisotropy > 1 and (3 if n_massive is None else n_massive) >= dim:
        raise ValueError(f"n_massive must leave some of the {dim} dimensions as they are; got "
                         f"{3 if n_massive is None else n_massive}. Take fewer, or a larger dim.")
    if isinstance(amplitude, str | bool):
        if amplitude not in AMPLITUDES:
            raise ValueError(f"amplitude must be one of {', '.join(AMPLITUDES)} or a positive number; "
                             f"got {amplitude!r}.")
    elif amplitude is not None:
        check_number("amplitude", amplitude, lambda v: 0 < v < math.inf,
                     f"one of {', '.join(AMPLITUDES)} or a positive number")
    if not isinstance(storage, str) or storage not in FORMATS:
        raise ValueError(f"storage must be one of {', '.join(FORMATS)}; got {storage!r}.")
    if not isinstance(allow_collapse, bool):
        raise ValueError(f"allow_collapse must be true or false; got {allow_collapse!r}.")
    if computed_in is not None and (not isinstance(computed_in, str) or computed_in not in NARROWER):
        raise ValueError(f"computed_in must be one of {', '.join(NARROWER)}, or None for the float64 in which systems "
                         f"step; got {computed_in!r}.")
    if not isinstance(source, System):
        for name, asked in (("computed_in", computed_in is not None), ("dynamical_noise", bool(dynamical_noise)),
                            ("allow_collapse", allow_collapse)):
            if asked:
                raise ValueError(f"{name} acts inside the loop and needs a System with its rule; got "
                                 f"{type(source).__name__} of states. Pass the system, or leave {name} out.")
    elif computed_in is not None and source.float64_only and not allow_collapse:
        raise ValueError(f"{source.name} keeps its answers in float64 only; got computed_in={computed_in!r}, in which "
                         "its orbits fall onto other cycles. Leave computed_in out, or say allow_collapse=True.")


def _counts(n_orbits: Any, n_steps: Any) -> tuple[int, int]:
    check_whole("n_orbits", n_orbits, 1, "a whole number of orbits to make")
    check_whole("n_steps", n_steps, 2, "a whole number of steps of at least 2")
    return int(n_orbits), int(n_steps)


def _given(source: Any, n_orbits: int | None, n_steps: int | None) -> np.ndarray:
    """States (n, T, d) in float64, which have their own n and T."""
    states = np.asarray(source.detach().double() if isinstance(source, torch.Tensor) else source)
    if states.ndim != 3 or 0 in states.shape or states.dtype.kind not in "fiu":
        raise ValueError(f"source must be a System or numbers of shape (n_orbits, n_steps, dim); got {states.dtype} "
                         f"of shape {states.shape}. One orbit? Pass states[None].")
    for name, asked, own in (("n_orbits", n_orbits, states.shape[0]), ("n_steps", n_steps, states.shape[1])):
        if asked is not None and asked != own:
            raise ValueError(f"{name} of given states is their own, {own}; got {asked!r}. Leave it out.")
    return states.astype(np.float64)


def _twin(generator: np.random.Generator) -> np.random.Generator:
    """A generator that will draw what this one will."""
    twin = np.random.Generator(type(generator.bit_generator)())
    twin.bit_generator.state = generator.bit_generator.state
    return twin


def _embedding(source: Any, states: np.ndarray, dim: int, offset: float, anisotropy: float, n_massive: int,
               amplitude: str | float | None, of_frame: np.random.Generator,
               of_offset: np.random.Generator) -> Embedding:
    d = states.shape[2]
    frame, triangle = np.linalg.qr(of_frame.standard_normal((dim, d)))
    frame = frame * np.sign(np.diag(triangle))  # uniform over frames (Stewart 1980)
    direction = of_offset.standard_normal(dim)
    if anisotropy > 1:
        massive = of_offset.choice(dim, n_massive, replace=False)
        direction[massive] = anisotropy * np.sign(direction[massive])
        frame[massive] *= anisotropy
        frame *= math.sqrt(d) / np.linalg.norm(frame)  # rms gain 1
    exact = source.exact if isinstance(source, System) else {}
    if amplitude is None:
        amplitude = "start" if exact.get("regime") in _SETTLING else "orbit"
    finite = np.isfinite(states).all(-1)
    if not finite[:, 0].all():
        raise ValueError(f"every orbit must begin with finite states; {int((~finite[:, 0]).sum())} of {len(states)} "
                         "do not. Leave these out, or shorten the transient.")
    last = np.where(finite.all(1), states.shape[1], finite.argmin(1)) - 1
    if amplitude == "start":
        limits = np.asarray(exact.get("fixed_point", states[np.arange(len(states)), last]), dtype=np.float64)
        limits = np.broadcast_to(limits, states[:, 0].shape)
        away, about = states[:, 0] - limits, limits
    else:
        largest = np.abs(states[finite]).max() or 1.0  # squares of an orbit that diverges may overflow
        scaled = np.where(finite[..., None], states, 0.0) / largest
        about = scaled.sum(1) / finite.sum(1)[:, None]
        away, about = (scaled - about[:, None])[finite] * largest, about * largest
    centre = about.mean(0)
    if isinstance(amplitude, str):
        largest = np.abs(away).max() or 1.0
        extent = largest * math.sqrt((((away / largest) @ frame.T) ** 2).sum(-1).mean())
        if not extent > _AT_REST * np.abs(centre).max():
            raise ValueError(f"the orbits must move to have an amplitude ({amplitude!r}); got {extent:.3g} beside "
                             f"states of {np.abs(centre).max():.3g}. Give amplitude=..., a number in the system's "
                             "units, or shorten the transient.")
    else:
        extent = float(amplitude)
    return Embedding(frame / extent, centre, offset * direction / np.linalg.norm(direction), extent)


def _run(system: System, n_orbits: int, n_steps: int, embedding: Embedding, dynamical_noise: float,
         of_kicks: np.random.Generator, rng: np.random.Generator, rounded: torch.dtype | None) -> Any:
    """The orbits once more, disturbed inside the loop: x (n, T, d), or, rounded, the wide states (n, T, dim)."""
    kick = dynamical_noise * embedding.amplitude / math.sqrt(system.dim)
    back = np.linalg.pinv(embedding.matrix).T  # once: `unembed` would find it in every step
    x = np.asarray(system.start(rng, n_orbits), dtype=np.float64)
    states: Any = np.empty((n_orbits, n_steps, system.dim))
    if rounded is not None:
        states = torch.empty((n_orbits, n_steps, embedding.matrix.shape[0]), dtype=rounded)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(-system.transient, n_steps):
            now: Any = x
            if rounded is not None:
                now = torch.from_numpy(embedding.embed(x)).to(rounded)
                x = (now.double().numpy() - embedding.offset) @ back + embedding.centre
            if t >= 0:
                states[:, t] = now
            if t + 1 < n_steps:
                x = system.step(x, rng)
                if kick:
                    x = x + kick * of_kicks.standard_normal(x.shape)
    return states


def _labels(source: Any) -> dict[str, Any]:
    if not isinstance(source, System):
        return {}
    homes = {name.removeprefix("synthetic."): getattr(module, "SYSTEMS", ()) for name, module in sys.modules.items()
             if name.startswith("synthetic.")}  # whoever made the system is loaded
    family = next((name for name, own in homes.items() if any(s.name == source.name for s in own)), "")
    return {"system": source.name, "family": family, "regime": source.exact.get("regime", ""),
            "period": float(source.exact.get("period", math.nan)), "rate": float(source.exact.get("rate", math.nan))}
