"""Which peers are here, and do they answer a question whose answer is known?

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/peers.py

Thin adapters, one function a peer and question, for the other benchmarks of this folder: each does what its users do by
default, or, where the name says tuned, with settings that somebody who knows the answer would choose. None is needed:
a peer that is not installed is reported as such. nolitsa is not on the package index: `pip install
git+https://github.com/manu-mannattil/nolitsa`. Asked of none of them: antropy (entropies only), pynamicalsys (periods
and exponents of rules, not of recordings); no Python peer gives a 0-1 test, a regime or a limit's multipliers.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.resources
import math
import os
import sys
import warnings

import numpy as np

MODULES = {"nolds": "nolds", "nolitsa": "nolitsa.lyapunov", "neurokit2": "neurokit2", "dysts": "dysts.analysis",
           "pyunicorn": "pyunicorn.timeseries", "PyDMD": "pydmd"}


def load(name):
    """The module of a peer. Raises ImportError where it is not installed."""
    if name != "nolds":
        return importlib.import_module(MODULES[name])
    # nolds 0.6.3 asks for the files of a module that is no package, which Python answers from 3.12 on
    strict = importlib.resources.files

    def files(anchor):
        try:
            return strict(anchor)
        except TypeError:
            return strict(anchor.rpartition(".")[0])

    importlib.resources.files = files
    try:
        return importlib.import_module("nolds")
    finally:
        importlib.resources.files = strict


@functools.cache
def missing(name):
    """Why a peer cannot be asked, in a sentence; empty where it can be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(name)
    except ImportError as error:
        return f"{name} is not installed ({error})."
    except Exception as error:  # a peer that breaks on import is no reason to stop
        return f"{name} does not import here ({type(error).__name__}: {error})."
    return ""


def versions():
    """Version of each peer, or why there is none."""
    return {name: missing(name) or importlib.metadata.version(name) for name in MODULES}


def asked(question):
    """The functions of this file that answer a question and whose peers are here, by their full names."""
    return {name: f for name, f in ANSWERS[question].items() if not missing(name.split()[0])}


def attempt(function, *args, **settings):
    """Its answer without its warnings; the name of the exception where there is none."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return function(*args, **settings)
        except Exception as error:  # a peer may raise anything: that, too, is an answer
            return type(error).__name__


@contextlib.contextmanager
def hushed():
    """Nothing on the screen: some print, and the linear algebra under them complains of infinities on its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for place, back in enumerate(kept, 1):
            os.dup2(back, place)
            os.close(back)
        os.close(nowhere)


def each(function, data):
    """Its answers to all the data, without a word."""
    with hushed():
        return [attempt(function, one) for one in data]


def first_component(states):
    """Scores (T,) on the first principal component: what a tool for scalar series is given of (T, D) states."""
    centred = np.asarray(states, dtype=np.float64)
    centred = centred - centred.mean(0)
    if centred.shape[1] == 1:
        return centred[:, 0]
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors[:, -1] * math.sqrt(max(values[-1], 0.0))


def delayed(x, dim, lag):
    """Delay vectors (T - (dim - 1) lag, dim) of a series (T,)."""
    n = len(x) - (dim - 1) * lag
    return np.stack([x[i * lag:i * lag + n] for i in range(dim)], axis=1)


# Largest Lyapunov exponent, nats a step, of a series (T,). Tuned: dimension, lag, least separation in time of
# neighbours, steps to fit over.

def nolds_exponent(x):
    return float(load("nolds").lyap_r(x))


def nolds_exponent_tuned(x, *, dim=2, lag=1, separation=5, length=7, fit="RANSAC"):
    return float(load("nolds").lyap_r(x, emb_dim=dim, lag=lag, min_tsep=separation, trajectory_len=length, fit=fit))


def neurokit_exponent(x):
    return float(load("neurokit2").complexity_lyapunov(x)[0])


def neurokit_exponent_tuned(x, *, dim=2, lag=1, separation=5, length=7):
    return float(load("neurokit2").complexity_lyapunov(x, delay=lag, dimension=dim, separation=separation,
                                                      len_trajectory=length)[0])


def makowski_exponent(x):
    return float(load("neurokit2").complexity_lyapunov(x, method="makowski")[0])


def dysts_exponent(x):
    return float(load("dysts").max_lyapunov_exponent_rosenstein(np.atleast_2d(x.T).T))


def nolitsa_exponent_tuned(x, *, dim=2, lag=1, separation=5, length=7):
    return nolitsa_exponent_of_states(delayed(x, dim, lag), separation=separation, length=length)


def nolitsa_exponent_of_states(states, *, separation=5, length=7):
    """Of states (T, D) as they are; it gives the curve, and leaves the line to its user."""
    curve = load("nolitsa").mle(states, maxt=length, window=separation, metric="euclidean")
    return float(np.polyfit(np.arange(len(curve)), curve, 1)[0])


def dysts_exponent_of_states(states, *, separation=5, length=7):
    return float(load("dysts").max_lyapunov_exponent_rosenstein(states, min_tsep=separation, trajectory_len=length))


# Multipliers of the modes of states (T, D), largest modulus first.

def _sorted(multipliers):
    return np.asarray(multipliers)[np.argsort(-np.abs(multipliers), kind="stable")]


def pydmd_multipliers(states, *, rank=6):
    return _sorted(load("PyDMD").DMD(svd_rank=rank).fit(np.ascontiguousarray(states.T)).eigs)


def pydmd_optimised_multipliers(states, *, rank=4):
    """Optimised DMD (BOP-DMD without bags)."""
    fitted = load("PyDMD").BOPDMD(svd_rank=rank, num_trials=0).fit(np.ascontiguousarray(states.T),
                                                                  t=np.arange(float(len(states))))
    return _sorted(np.exp(fitted.eigs))


def contraction(multipliers, *, near_one=1e-3):
    """The slowest mode beside the constant, which is the multiplier nearest to 1."""
    rest = np.delete(multipliers, np.abs(multipliers - 1).argmin())
    return float(np.abs(rest).max()) if len(rest) else math.nan


# Recurrence quantification of states (T, D) at a Euclidean threshold.

def pyunicorn_recurrence(states, *, threshold):
    """All its line measures, the main diagonal as it counts it; without the 1e-8 that it adds to denominators."""
    plot = load("pyunicorn").RecurrencePlot(states, metric="euclidean", threshold=threshold, silence_level=2)
    plot._epsilon = 0.0
    return {"recurrence_rate": float(plot.recurrence_rate()), "determinism": float(plot.determinism()),
            "mean_diagonal": float(plot.average_diaglength()), "longest_diagonal": int(plot.max_diaglength()),
            "diagonal_entropy": float(plot.diag_entropy()), "laminarity": float(plot.laminarity()),
            "trapping_time": float(plot.average_vertlength()), "longest_vertical": int(plot.max_vertlength())}


# Correlation dimension of a series (T,), or of states (T, D).

def nolds_dimension(x, *, dim=2):
    return float(load("nolds").corr_dim(x, emb_dim=dim))


def neurokit_dimension(x):
    return float(load("neurokit2").fractal_correlation(x, delay=1, dimension=2)[0])


def dysts_dimension_of_states(states):
    return float(load("dysts").gp_dim(states))


def nolitsa_dimension_of_states(states):
    """Median of the local slopes over the middle decade of distances with pairs."""
    from nolitsa import d2

    r, c = d2.c2(states, metric="euclidean")
    slopes = d2.d2(r, c)
    low, high = np.searchsorted(c[3:-3], [1e-3, 1e-1])
    return float(np.median(slopes[low:max(high, low + 1)]))


ANSWERS = {  # question -> "peer, how" -> function; a series unless the name says states
    "exponent": {"nolds default": nolds_exponent, "nolds tuned": nolds_exponent_tuned,
                 "neurokit2 default": neurokit_exponent, "neurokit2 tuned": neurokit_exponent_tuned,
                 "neurokit2 makowski": makowski_exponent, "nolitsa tuned": nolitsa_exponent_tuned,
                 "dysts default": dysts_exponent},
    "exponent of states": {"nolitsa tuned": nolitsa_exponent_of_states, "dysts tuned": dysts_exponent_of_states},
    "multipliers": {"PyDMD DMD": pydmd_multipliers, "PyDMD optimised": pydmd_optimised_multipliers},
    "recurrence": {"pyunicorn": pyunicorn_recurrence},
    "dimension": {"nolds default": nolds_dimension, "neurokit2 default": neurokit_dimension},
    "dimension of states": {"dysts default": dysts_dimension_of_states, "nolitsa tuned": nolitsa_dimension_of_states},
}


def _known():
    """Question -> (arguments, settings, does the answer hold?), each with an answer known in closed form."""
    x = np.empty(600)
    x[0] = 0.3123
    for i in range(599):
        x[i + 1] = 4 * x[i] * (1 - x[i])
    t = np.arange(64)[:, None]
    decay = 3 + 0.9**t * np.arange(8) + 0.5**t * np.arange(8) ** 2
    square = np.random.default_rng(0).random((600, 2))
    cycle = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])[np.arange(60) % 3]
    return {"exponent": (x, {}, lambda v: abs(v / math.log(2) - 1) < 0.1),
            "exponent of states": (delayed(x, 2, 1), {}, lambda v: abs(v / math.log(2) - 1) < 0.1),
            "multipliers": (decay, {"rank": 3}, lambda v: np.abs(v - [1, 0.9, 0.5]).max() < 1e-3),
            "recurrence": (cycle, {"threshold": 1.0}, lambda v: abs(v["determinism"] - 1) < 1e-6),
            "dimension": (x, {}, lambda v: 0.8 < v < 1.2),
            "dimension of states": (square, {}, lambda v: 1.7 < v < 2.2)}


def main():
    import side_by_side

    options = side_by_side.arguments(__doc__)
    found = versions()
    rows, answers = [], {}
    for question, (data, settings, holds) in _known().items():
        for name in ANSWERS[question]:
            if missing(name.split()[0]):
                rows.append((question, name, "not installed", None))
                continue
            value = attempt(ANSWERS[question][name], data, **settings)
            right = not isinstance(value, str) and bool(holds(value))
            assert right or "default" in name or "makowski" in name, f"{name} on {question} gives {value}"
            answers[f"{question}: {name}"] = right
            rows.append((question, name, "right" if right else "wrong by default", np.array2string(
                np.asarray(value["determinism"] if isinstance(value, dict) else value), precision=4)))
    print(side_by_side.table(("question", "peer", "known answer", "value"), rows))
    for name, version in found.items():
        print(f"{name}: {version}")
    side_by_side.save({"versions": found, "right": answers, **side_by_side.machine()}, options.save)


if __name__ == "__main__":
    main()
