"""All of a model and of the process around it that an analysis could change by mistake."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


def condition(module: nn.Module | None) -> dict[str, Any]:
    """Copies, to be compared with `differ`."""
    found: dict[str, Any] = {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": np.random.get_state(legacy=True)[1],  # type: ignore[index]
        "python's random state": random.getstate(), "the gradient mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype()}
    if module is None:
        return found
    parts = list(module.named_modules())
    return {**found, "the parts": [(name, id(part), type(part)) for name, part in parts],
            "the weight or buffer": {name: tensor.detach().clone() for name, tensor in
                                     [*module.named_parameters(), *module.named_buffers()]},
            "what is asked of the weight": {
                name: (id(weight), weight.requires_grad, None if weight.grad is None else weight.grad.clone())
                for name, weight in module.named_parameters()},
            "the training mode of": {name: part.training for name, part in parts},
            "the hooks of": {name: [len(value) for key, value in sorted(vars(part).items()) if "_hooks" in key
                                    and hasattr(value, "__len__")] for name, part in parts},
            "the attributes of": {name: sorted(vars(part)) for name, part in parts},
            "the configuration": repr(getattr(module, "config", None))}
