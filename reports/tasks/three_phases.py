"""python reports/tasks/three_phases.py --out FOLDER: a nano model learns facts, then to put them together; when?

Trains a model of four recurrences on the knowledge graph, with the monitor beside it, and prints the phases and how
many loops its answers need. Some minutes of one quiet core; ended by an interruption, the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dynloop.advice import loops_by_difficulty, loops_needed
from dynloop.monitoring import LoopMonitor, training_phases
from dynloop.nano import NanoConfig, NanoModel, TrainingConfig, train
from dynloop.nano.tasks import make_task

TASK = {"entities": 12, "relations": 6, "difficulties": [1, 2], "harder": [3], "seed": 0}
MODEL = NanoConfig(width=64, n_heads=2, n_prelude=0, n_block=1, n_coda=0, n_recurrences=4, norm="pre",
                   injection="none", loop_norm=True)


def training(steps: int, length: int, seed: int) -> TrainingConfig:
    """How it is trained."""
    return TrainingConfig(steps=steps, batch_size=128, length=length, learning_rate=3e-3, weight_decay=0.3, warmup=50,
                          seed=seed, log_every=100, evaluate_every=500, checkpoint_every=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = make_task("knowledge_graph", TASK)

    def watch(model: NanoModel):
        return LoopMonitor(model, task.held_out_windows(n=4, length=task.length).tolist(), every=100, log=options.out,
                           n_recurrences=8, spectral_radius=False, attention=False, task=task).step

    model = train(MODEL, training(options.steps, task.length - 1, options.seed), task, options.out, monitor=watch)
    print(training_phases(options.out).to_frame().to_string(index=False))
    for split in task.splits:
        measured = loops_needed(model, task.questions(0, 200, split=split), n_recurrences=MODEL.n_recurrences + 1)
        print(f"{split}: {measured}")
        try:
            print(loops_by_difficulty(measured, resample="prompt"))
        except ValueError as error:
            print(f"no slope: {error}")


if __name__ == "__main__":
    main()
