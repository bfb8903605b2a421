"""Sliders: orbits that move on for ever in steps that neither shrink nor grow."""

import math

import numpy as np

from synthetic.frames import frame
from synthetic.system import System


def drift(name: str, dim: int, *, speed: float = 0.05, rate: float | None = None, far: float = 20.0,
          seed: int = 0) -> System:
    """The same step for ever, x' = x + v; with a rate, onto a line: x' = x + v - (1 - rate) (x - line, across v).

    Args:
        name: its name.
        dim: dimensions.
        speed: norm of v.
        rate: factor by which one step shrinks the distance from the line; None where there is no line.
        far: norm of the centre about which orbits start. If it is 0 the drift soon outgrows the start, and a step gets
            ever smaller beside the state, like 1/t: relative steps and cosines then look like convergence.
        seed: of direction and centre.
    """
    rng = np.random.default_rng([2706, seed])
    way = frame(rng, dim, 1)[:, 0]
    centre = rng.normal(size=dim)
    centre *= far / np.linalg.norm(centre)
    spread = 1.0 if rate is not None else speed  # noise of the start; across a line it is the approach

    def step(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rate is None:
            return x + speed * way
        away = x - centre
        along = (away @ way)[:, None] * way
        return centre + along + rate * (away - along) + speed * way

    exact = {"regime": "slider", "speed": speed,
             "lyapunov": (0.0,) + (0.0 if rate is None else math.log(rate),) * (dim - 1)}
    return System(name, dim, lambda rng, n: centre + spread * rng.normal(size=(n, dim)) / math.sqrt(dim), step,
                  exact=exact)


def turning_drift(name: str, dim: int, *, speed: float = 0.1, lean: float = 0.6, seed: int = 0) -> System:
    """Steps of one length at a constant angle to the way out: a logarithmic spiral that turns ever more slowly.

    The radius in the plane of the spiral grows by speed cos(lean) a step; by then the orbit has turned by
    tan(lean) ln(radius / radius at the start), and the relative step falls like 1/t.

    Args:
        name: its name.
        dim: dimensions, 2 at least.
        speed: length of a step.
        lean: angle between the step and the way out, radians, less than pi/2.
        seed: of plane and centre.
    """
    rng = np.random.default_rng([2707, seed])
    plane = frame(rng, dim, 2)
    centre = rng.normal(size=dim)
    turn = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])

    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        angle, radius = rng.uniform(0, 2 * np.pi, size=n), rng.uniform(1, 2, size=n)
        spiral = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return centre + 0.1 * rng.normal(size=(n, dim)) + spiral @ plane.T

    def step(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = (x - centre) @ plane
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return x + speed * out @ turn.T @ plane.T

    return System(name, dim, start, step, exact={"regime": "slider", "speed": speed})


SYSTEMS = (
    drift("drift 2d", 2, seed=1),
    drift("drift 64d", 64, speed=0.2, seed=2),
    drift("drift 64d, slow", 64, speed=0.02, seed=3),
    drift("drift 2d ballistic", 2, far=0.0, seed=4),
    drift("drift 32d ballistic", 32, speed=0.5, far=0.0, seed=5),
    drift("drift onto a line 4d", 4, speed=0.1, rate=0.8, far=5.0, seed=6),
    drift("drift onto a line 64d", 64, speed=0.1, rate=0.9, far=5.0, seed=7),
    turning_drift("turning drift 2d", 2, seed=8),
    turning_drift("turning drift 32d", 32, speed=0.3, lean=1.0, seed=9),
)
