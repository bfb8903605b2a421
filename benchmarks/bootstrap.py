"""How long does a bootstrap of tokens within prompts take, beside scipy's and arch's, and is it the same interval?

    python benchmarks/bootstrap.py --save benchmarks/results/bootstrap.json

One million tokens in 8,192 prompts, one mean, 10,000 resamples. `estimate` draws prompts and knows their sums. Peers
resample the tokens (few resamples are timed and the time is multiplied: their loops are linear in the number of
resamples) and the 8,192 prompt means. Then eight statistics over 8,192 clusters with 10,000 resamples (`poisson_sums`):
seconds of CPU, and whether one thread, two threads and seven shards give the same bits. Memory: the most that Python
and NumPy held beyond the data while `estimate` ran, in units of the data (values, labels and outcomes).
"""

import time
import tracemalloc

import numba
import numpy as np
import pandas as pd
import side_by_side
from scipy import stats

from dynloop import Measurement, Outcome, estimate
from dynloop.statistics.poisson_sums import poisson_sums


def study(n_tokens, n_prompts, rng):
    """A measurement of tokens in prompts of unequal length, and its size in bytes."""
    prompt = np.sort(np.r_[np.arange(n_prompts), rng.integers(0, n_prompts, n_tokens - n_prompts)])
    values = rng.normal(size=n_prompts)[prompt] + rng.normal(size=n_tokens)
    m = Measurement("rate", {"rate": values}, [Outcome.FOUND] * n_tokens, labels={"prompt": prompt})
    return m, values.nbytes + prompt.nbytes + m.outcomes.nbytes


def peers(tokens, means, n_resamples, on_tokens):
    """Name: (function of the number of resamples, that number, how often it must be taken)."""
    found = {
        "scipy, tokens": (lambda n: stats.bootstrap((tokens,), np.mean, n_resamples=n, method="percentile", batch=1),
                          on_tokens, n_resamples / on_tokens),
        "scipy, prompt means": (lambda n: stats.bootstrap((means,), np.mean, n_resamples=n, method="percentile",
                                                          batch=100), n_resamples, 1)}
    try:
        import arch.bootstrap
    except ImportError:
        print("arch is not here and is left out")
        return found
    rng = np.random.default_rng(0)
    found["arch, tokens"] = (lambda n: arch.bootstrap.IIDBootstrap(tokens, seed=rng).conf_int(
        np.mean, n, method="percentile"), on_tokens, n_resamples / on_tokens)
    found["arch, prompt means"] = (lambda n: arch.bootstrap.IIDBootstrap(means, seed=rng).conf_int(
        np.mean, n, method="percentile"), n_resamples, 1)
    return found


def mean_of_tokens(n_tokens, n_prompts, n_resamples, on_tokens, repeats, tiny):
    """Seconds of ours and theirs, and that the intervals agree."""
    rng = np.random.default_rng(5)
    m, size = study(n_tokens, n_prompts, rng)
    tokens, prompt = m.values, m.labels["prompt"]
    means = np.bincount(prompt, tokens) / np.bincount(prompt)

    def ours(method):
        return estimate(m, statistic="mean", resample="prompt", method=method, n_resamples=n_resamples)

    tasks = {"dynloop": lambda: ours("percentile"), "dynloop, BCa": lambda: ours("BCa"),
             "dynloop, studentised": lambda: ours("studentised")}
    others = peers(tokens, means, n_resamples, on_tokens)
    tasks |= {name: (lambda f=f, n=n: f(n)) for name, (f, n, _) in others.items()}
    seconds = side_by_side.in_turn(tasks, repeats)
    for name, (_, _, many) in others.items():
        seconds[name] = seconds[name] * many
    # equal prompts: theirs of prompt means is ours
    equal = Measurement("mean", {"mean": means}, [Outcome.FOUND] * n_prompts, labels={"prompt": np.arange(n_prompts)})
    own = estimate(equal, statistic="mean", resample="prompt", method="percentile", n_resamples=n_resamples)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=n_resamples, method="percentile", batch=100,
                             rng=np.random.default_rng(1)).confidence_interval
    off = max(abs(own.low - theirs.low), abs(own.high - theirs.high)) / (own.high - own.low)
    assert off < (0.15 if tiny else 0.03), f"the interval differs from scipy's by {off:.3f} of its width"
    naive = stats.norm.ppf(0.975) * tokens.std() / np.sqrt(n_tokens)
    tracemalloc.start()
    e = ours("percentile")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = [[name, float(np.median(s)), *side_by_side.times(s, seconds["dynloop"])] for name, s in seconds.items()]
    print(side_by_side.table(["", "seconds", "times ours", "least", "most"], rows))
    print(f"memory beyond the data: {most / size:.2f} times the data ({size / 2**20:.0f} MiB)")
    print(f"half width {(e.high - e.low) / 2:.4g}; of tokens taken as independent {naive:.4g}")
    return {"seconds": {r[0]: r[1] for r in rows}, "times_ours": {r[0]: r[2:] for r in rows},
            "resamples_timed_on_tokens": on_tokens, "memory_beyond_data": most / size, "off_scipy": off}


def eight_statistics(n_tokens, n_prompts, n_resamples):
    """Seconds of CPU, and whether threads and shards change a bit."""
    rng = np.random.default_rng(6)
    names = [f"v{k}" for k in range(8)]
    prompt = np.r_[np.arange(n_prompts), rng.integers(0, n_prompts, n_tokens - n_prompts)]
    frame = pd.DataFrame({"prompt": prompt, **{name: rng.normal(size=n_tokens) for name in names}})
    ask = {"resample": "prompt", "variables": names, "n_resamples": n_resamples}
    poisson_sums(frame[:n_prompts], **{**ask, "n_resamples": 100})
    threads, found, cpu = numba.get_num_threads(), [], []
    for count in (1, min(2, threads)):
        numba.set_num_threads(count)
        began = time.process_time()
        found.append(poisson_sums(frame, **ask))
        cpu.append(time.process_time() - began)
    of_row = rng.integers(0, 7, n_tokens)
    shards = [poisson_sums(frame[of_row == i], **ask) for i in range(7)]
    found.append(sum(shards[:-1], shards[-1]))
    for other in found:
        assert np.array_equal(other.replicates.parts, found[0].replicates.parts), "threads or shards change the sums"
        assert other.estimate("v3") == found[0].estimate("v3")
    print(f"eight statistics, {n_prompts} clusters, {n_resamples} resamples: {cpu[0]:.2f} s of CPU with one thread, "
          f"{cpu[1]:.2f} s with {min(2, threads)}; the same bits from seven shards")
    return {"cpu_one_thread": cpu[0], "cpu_two_threads": cpu[1], "threads": min(2, threads)}


def main():
    options = side_by_side.arguments(
        __doc__, tokens=(1_000_000, 4000, "tokens"), prompts=(8192, 200, "prompts"),
        resamples=(10_000, 500, "resamples"), timed=(40, 20, "of these on all tokens, for peers"),
        repeats=(3, 1, "rounds"))
    figures = {"mean": mean_of_tokens(options.tokens, options.prompts, options.resamples, options.timed,
                                      options.repeats, options.tiny),
               "eight": eight_statistics(max(options.tokens // 5, options.prompts * 2), options.prompts,
                                         options.resamples)}
    side_by_side.save({"machine": side_by_side.machine(), "tokens": options.tokens, "prompts": options.prompts,
                       "resamples": options.resamples, **figures}, options.save)


if __name__ == "__main__":
    main()
