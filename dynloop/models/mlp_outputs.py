"""What the neurons of a model write: the output matrix of every MLP, and the norm that it passes on its way."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from dynloop.models.looped_model import LoopedModel, first_state, undisturbed, unwrapped
from dynloop.models.unembedding import gain_of


@dataclasses.dataclass(frozen=True)
class MlpOutput:
    """The last matrix of a layer.

    Attributes:
        part: "prelude", "block" or "coda".
        layer: within the part, counted from 1.
        path: of the module that holds the matrix.
        weight: (width, neurons): column i is what neuron i writes for an activation of one.
        gain: (width,) of the norm that what is written passes before it is in the stream, or with the stream at the
            end of the layer; None where there is none.
        centred: whether that norm takes the mean off.
        norm: "branch" (of the MLP's output alone), "stream" (of the stream that it was added to) or "".
    """

    part: str
    layer: int
    path: str
    weight: torch.Tensor
    gain: torch.Tensor | None
    centred: bool
    norm: str


def mlp_outputs(looped: LoopedModel) -> list[MlpOutput]:
    """The output matrix of the MLP of every layer, in the order of the layers, by one short run of the model.

    Of a layer it is the matrix of the last module called in it that gives states; a norm counts that takes what this
    module gave, or gives what the layer gives. Neither names nor classes matter.

    Args:
        looped: its `layers`, or where these are not known the modules of its points.

    Raises:
        ValueError: a layer in which no module with a matrix gives states, several take turns (experts), or the last
            that gives states holds matrices and is no linear layer.
    """
    root = unwrapped(looped.module)
    parts = looped.layers or {"block": list(dict.fromkeys(m for point in looped.points for m in point.modules))}
    layers = {unwrapped(layer): (part, number) for part, held in parts.items()
              for number, layer in enumerate(held, start=1)}
    paths = {unwrapped(part): path for path, part in root.named_modules()}
    open_layers: list[nn.Module] = []
    last: dict[nn.Module, tuple[nn.Module, torch.Tensor]] = {}
    calls: dict[nn.Module, list[tuple[nn.Module, torch.Tensor, torch.Tensor]]] = {}  # what came and went since then
    around: dict[nn.Module, list[nn.Module]] = {}  # modules that give what the layer gives
    sealed: dict[nn.Module, nn.Module] = {}  # gave states since then, by matrices of which none is known to be the last

    def enter(module: nn.Module, given: Any) -> None:
        open_layers.append(module)
        last.pop(module, None)  # of the recurrence before
        sealed.pop(module, None)
        calls[module] = []

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        open_layers.pop()
        gave = first_state(output)
        around[module] = [part for part, _, out in calls[module] if gave is not None and torch.equal(out, gave)]

    def note(module: nn.Module, given: Any, output: Any) -> None:
        if not open_layers or not isinstance(output, torch.Tensor) or output.shape[-1:] != (looped.width,):
            return
        layer, taken = open_layers[-1], first_state(given)
        if _matrix(module, output) is not None:
            last[layer] = module, output.detach().clone()
            calls[layer] = []
            sealed.pop(layer, None)
        elif taken is not None:
            calls[layer].append((module, taken.detach().clone(), output.detach().clone()))
            if any(weight is not None and weight.ndim > 1 for weight in module._parameters.values()):
                sealed[layer] = module

    handles: list[Any] = []
    try:
        for layer in layers:
            handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)]
        inside = dict.fromkeys(part for layer in layers for part in layer.modules() if part not in layers)
        handles += [part.register_forward_hook(note) for part in inside]
        with undisturbed(root):
            tokens = (torch.arange(looped.n_tokens or 2, device=looped.device)[None] * 7 + 3) % looped.vocabulary
            start = looped.initial_state(looped.embed(tokens), seeds=[0]) if looped.is_map else None
            copies = len(looped.points[0].modules) > 1
            looped.logits(tokens, (looped.most_recurrences or 1) if copies else looped.multiple, start)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for layer, (part, number) in layers.items():
        where = paths.get(layer, f"layer {number} of the {part}")
        if layer not in last:
            raise ValueError(f"no module of {where} in {looped.name} holds a matrix and gives {looped.width} features: "
                             "what its neurons write is not to be seen. Give w_out= and unembedding=.")
        module, gave = last[layer]
        if layer in sealed:
            raise ValueError(f"{paths[sealed[layer]]} of {looped.name} ({type(sealed[layer]).__name__}) writes by "
                             "matrices of its own, such as those of experts that take turns: there is no one matrix "
                             "that is known. Give w_out= of each, and unembedding=.")
        if "expert" in paths[module]:
            raise ValueError(f"{paths[module]} of {looped.name} is one of several experts, which take turns: there "
                             "is no one matrix that its neurons write by. Give w_out= of each, and unembedding=.")
        matrix = _matrix(module, gave)
        assert matrix is not None  # or it would not be there
        of_branch = [call for call, taken, _ in calls[layer] if taken.shape == gave.shape and torch.equal(taken, gave)]
        passed = [*(("branch", norm) for norm in of_branch), *(("stream", norm) for norm in around[layer])]
        gains = ((kind, gain_of(norm, looped.width, gave)) for kind, norm in passed)
        kind, gain = next(((kind, gain) for kind, gain in gains if gain is not None), ("", None))
        found.append(MlpOutput(part, number, paths[module], matrix.detach(), None if gain is None else gain[0],
                               gain is not None and gain[1], kind))
    return found


def _matrix(module: nn.Module, gave: torch.Tensor) -> torch.Tensor | None:
    """The matrix (features out, features in) of a linear module, however it is laid out."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return None
    if "nx" in vars(module) or type(module).__name__ == "Conv1D":  # GPT-2's, (in, out)
        return weight.T
    return weight if weight.shape[0] == gave.shape[-1] else None

