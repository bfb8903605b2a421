"""What does LoopMonitor cost a training run at its default interval, and does it change a single bit of it?

    python benchmarks/monitor_overhead.py                 # nano models of width 128, 8 windows of 96 bytes a step
    python benchmarks/monitor_overhead.py --tiny

Two models of one seed are trained on the same windows in one run, step by step in turn, one of them with the monitor.
Quoted are the share of the monitor's time in that of its model's steps, by the clock of the benchmark around
`monitor.step`; the ratio of the steps' own times with the monitor to those without, which shows what it costs outside
of its call; and the training time after which it measures for the first time. The answers are checked: losses and
weights are the same to the last bit, and the share is below the 2 % that is promised.
"""

import tempfile
import time

import numpy as np
import torch
from side_by_side import arguments, machine, one_thread, save, table
from torch.nn import functional as F

from dynloop.monitoring import LoopMonitor, read_log
from dynloop.nano import NanoConfig, NanoModel, load_corpus

PROMISED = 0.02


def one_step(model, optimizer, batch, recurrences):
    optimizer.zero_grad(set_to_none=True)
    logits = model(batch[:, :-1], n_recurrences=recurrences)
    loss = F.cross_entropy(F.dropout(logits, 0.01).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    return loss.item()


def main():
    options = arguments(__doc__, seconds=(150.0, 4.0, "seconds of training of each model"),
                        width=(128, 16, "width of the models"), length=(96, 8, "bytes of a window"),
                        prompts=(4, 2, "prompts of the probe"), tokens=(32, 8, "tokens of each"),
                        recurrences=(32, 4, "recurrences of the probe"))
    one_thread()
    corpus = load_corpus()
    config = NanoConfig(width=options.width, n_block=1 if options.tiny else 2)
    models = [NanoModel(config, seed=0) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):  # what is slow the first time
        batch = torch.from_numpy(corpus.draw(np.random.default_rng(0), n=8, length=options.length + 1)).long()
        torch.manual_seed(0)
        one_step(model, optimizer, batch, 4)
    with tempfile.TemporaryDirectory() as folder:
        probe = corpus.held_out_windows(n=options.prompts, length=options.tokens).tolist()
        settings = {"attention": False, "spectral_radius": False} if options.tiny else {}
        monitor = LoopMonitor(models[1], probe, log=folder, n_recurrences=options.recurrences, **settings)
        spent, own, first, step = 0.0, [[], []], None, 0
        drawn = [torch.get_rng_state()] * 2  # each training draws from its own
        while sum(own[1]) < options.seconds:
            step += 1
            rng = np.random.default_rng(step)
            batch = torch.from_numpy(corpus.draw(rng, n=8, length=options.length + 1)).long()
            recurrences, losses = int(rng.integers(1, 9)), []
            for which in ((0, 1), (1, 0))[step % 2]:
                torch.set_rng_state(drawn[which])
                if which:
                    monitor._left = time.perf_counter()  # the other model's step is not this one's
                began = time.perf_counter()
                losses.append(one_step(models[which], optimizers[which], batch, recurrences))
                ended = time.perf_counter()
                own[which].append(ended - began)
                if which:
                    record = monitor.step(step)
                    spent += time.perf_counter() - ended
                    first = sum(own[1]) if record and first is None else first
                drawn[which] = torch.get_rng_state()
            assert losses[0] == losses[1], f"step {step}: {losses}"
        frame = read_log(folder)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    share, ratio = spent / sum(own[1]), float(np.median(own[1]) / np.median(own[0]))
    if not options.tiny:  # which is too short for either
        assert share < PROMISED, f"{100 * share:.2f} % of the time: {list(frame.seconds)}"
        assert len(frame) > 0, "too short: the monitor has not measured yet; give more --seconds"
    measured = frame.seconds if len(frame) else np.zeros(0)
    figures = {"machine": machine(), "prompts": options.prompts, "tokens": options.tokens,
               "recurrences": options.recurrences, "steps": step, "seconds": sum(own[1]), "measurements": len(frame),
               "seconds_a_measurement": float(np.median(measured)) if len(frame) else None, "share": share,
               "outside_of_its_call": ratio, "setup_seconds": monitor.setup_seconds, "first_after_seconds": first,
               "losses": "the same bits",
               "microseconds_of_a_call_that_measures_nothing": 1e6 * (spent - float(np.sum(measured))) / step}
    print(table(["figure", "value"], [[name, value] for name, value in figures.items() if name != "machine"]))
    save(figures, options.save)


if __name__ == "__main__":
    main()
