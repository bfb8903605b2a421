"""What do attention statistics cost beside the forward itself?

    python benchmarks/attention_overhead.py            # width 512, 8 heads, 4 layers x 4 recurrences, 1,024 tokens
    python benchmarks/attention_overhead.py --tiny

Norms, injection and attention of the looped model are laid out as in Huginn. The forward and the forwards with
statistics take turns on one thread; quoted are the median, least and most of the ratios over the rounds, of the
processor's time, which a busy machine does not change (of the clock's time with --clock). The answers are checked
first: against maps built in full, and the model's output against its plain forward, bit by bit.
"""

import time

import numpy as np
import torch
from side_by_side import arguments, machine, one_thread, save, table, times
from torch.nn import functional as F

from dynloop.attention import attention_statistics
from dynloop.nano import NanoConfig, NanoModel

WAYS = {"distance=False": {"distance": False}, "default": {}, "keep_maps=True": {"keep_maps": True}}


def written_out(q, k, v, is_causal=False):
    """Eager attention, as models write it; it builds the map."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return F.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1) @ v


def in_turn(tasks, rounds, timer):
    """Seconds (rounds,) of each task; the tasks take turns."""
    for task in tasks.values():
        task()
    seconds = {name: np.empty(rounds) for name in tasks}
    for r in range(rounds):
        for name, task in tasks.items():
            began = timer()
            task()
            seconds[name][r] = timer() - began
    return seconds


def check(model, tokens, plain):
    """Worst error of any number on one map and its distance to the one before, built in full."""
    maps = []

    class See(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                q, k, _ = (x.double() for x in args)
                scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
                maps.append(torch.softmax(scores + torch.full_like(scores, -torch.inf).triu(1), -1))
                del maps[:-model.config.n_block - 1]
            return func(*args, **(kwargs or {}))

    with attention_statistics(model) as seen:
        assert torch.equal(model(tokens), plain), "the output has changed"
    assert len(seen.calls) == model.config.n_block * model.n_recurrences
    with See():
        model(tokens)
    now, before, call = maps[-1], maps[0], seen.calls[-1]
    errors = [call.column_sums - now.sum(2), call.entropies - torch.special.entr(now).sum(-1),
              call.maxima - now.amax(-1), call.distance - torch.linalg.norm(now - before, dim=(2, 3))]
    worst = max(e.abs().max().item() for e in errors)
    assert worst < 1e-3, f"a number is off by {worst:.2g}"
    return worst


def main():
    options = arguments(__doc__, tokens=(1024, 64, "tokens of the prompt"), rounds=(9, 1, "rounds"),
                        width=(512, 32, "width of the model"), clock=(False, False, "time by the clock"))
    one_thread()
    model = NanoModel(NanoConfig(width=options.width, n_heads=8, n_prelude=0, n_block=4, n_coda=0, n_recurrences=4,
                                 injection="linear", norm="residual"), seed=0).eval()
    tokens = torch.randint(256, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    figures, rows = {"machine": machine(), "tokens": options.tokens, "width": options.width}, []
    timer = time.perf_counter if options.clock else time.process_time
    with torch.no_grad():
        figures["worst_error"] = check(model, tokens, model(tokens))

        def with_statistics(settings):
            with attention_statistics(model, **settings):
                model(tokens)

        sdpa = F.scaled_dot_product_attention
        for kind, attend in (("fused", sdpa), ("written out", written_out)):
            F.scaled_dot_product_attention = attend
            try:
                tasks = {"forward": lambda: model(tokens),
                         **{name: (lambda settings=settings: with_statistics(settings))
                            for name, settings in WAYS.items()}}
                seconds = in_turn(tasks, options.rounds, timer)
            finally:
                F.scaled_dot_product_attention = sdpa
            for name in WAYS:
                ratio, least, most = times(seconds[name], seconds["forward"])
                figures[f"{kind}, {name}"] = {"ratio": ratio, "least": least, "most": most}
                rows.append([kind, name, 1e3 * float(np.median(seconds["forward"])),
                             1e3 * float(np.median(seconds[name])), ratio, least, most])
    print(f"worst error of any number: {figures['worst_error']:.2g}")
    print(table(["attention", "statistics", "forward ms", "with ms", "ratio", "least", "most"], rows))
    save(figures, options.save)


if __name__ == "__main__":
    main()
