"""A small looped language model that trains anywhere, with every switch that the literature varies."""

from typing import TYPE_CHECKING

from dynloop.lazy import exports

if TYPE_CHECKING:
    from dynloop.nano.config import RECIPES, NanoConfig, TrainingConfig
    from dynloop.nano.corpus import Corpus, load_corpus
    from dynloop.nano.model import NanoModel, model_hash
    from dynloop.nano.shipped import load_checkpoint, shipped_prompts
    from dynloop.nano.task import Questions, Task
    from dynloop.nano.tasks import make_task, task_names
    from dynloop.nano.training import held_out_loss, load_model, save_model, train

__all__ = ["RECIPES", "Corpus", "NanoConfig", "NanoModel", "Questions", "Task", "TrainingConfig", "held_out_loss",
           "load_checkpoint", "load_corpus", "load_model", "make_task", "model_hash", "save_model", "shipped_prompts",
           "task_names", "train"]

__getattr__, __dir__ = exports(__name__, {
    **dict.fromkeys(("RECIPES", "NanoConfig", "TrainingConfig"), "dynloop.nano.config"),
    **dict.fromkeys(("Corpus", "load_corpus"), "dynloop.nano.corpus"),
    **dict.fromkeys(("NanoModel", "model_hash"), "dynloop.nano.model"),
    **dict.fromkeys(("load_checkpoint", "shipped_prompts"), "dynloop.nano.shipped"),
    **dict.fromkeys(("Questions", "Task"), "dynloop.nano.task"),
    **dict.fromkeys(("make_task", "task_names"), "dynloop.nano.tasks"),
    **dict.fromkeys(("held_out_loss", "load_model", "save_model", "train"), "dynloop.nano.training"),
})
