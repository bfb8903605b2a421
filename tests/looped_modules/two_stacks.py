"""As HRM-Text: a fast and a slow stack, nested loops, a joint state; each stack ends in a norm."""

import torch
from torch import nn

from dynloop.models import hooked_block, temporarily
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.final_norm = nn.ModuleList([Layer(), Layer()]), nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, hidden_states, seen=None):
        for layer in self.layers:
            hidden_states = layer(hidden_states)
            if seen is not None:
                seen.append(hidden_states)
        hidden_states = self.final_norm(hidden_states)
        if seen is not None:
            seen[-1] = hidden_states
        return hidden_states


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.embed_tokens, self.L_module, self.H_module = nn.Embedding(VOCABULARY, WIDTH), Stack(), Stack()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.H_cycles, self.L_cycles = 2, 3

    def recur(self, state, context=None, r=0):
        low, high = state.chunk(2, dim=-1)
        place = 0
        for stack in ["L"] * self.L_cycles + ["H"]:
            seen = []
            if stack == "L":
                low = self.L_module(low + high, seen=seen)
            else:
                high = self.H_module(high + low, seen=seen)
            for state in seen:
                self.note(r, place, stack, state)
                place += 1
        return torch.cat((low, high), dim=-1)

    def start(self, x, seeds=None):
        return torch.cat((torch.zeros_like(x), x), dim=-1)

    def forward(self, tokens, state=None):
        state = self.start(self.embed_tokens(tokens)) if state is None else state
        for r in range(self.H_cycles):
            state = self.recur(state, r=r)
        return (self.lm_head(state.chunk(2, dim=-1)[1]), None)


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)

    def run(tokens, n, state):
        with temporarily(own, H_cycles=n):
            return model(tokens, state=state)[0]

    return hooked_block(
        model, ["L_module.layers.0", "L_module.final_norm"] * 3 + ["H_module.layers.0", "H_module.final_norm"],
        stacks=["L"] * 6 + ["H"] * 2, state_points=[5, 7], embed=own.embed_tokens, initial_state=own.start,
        step=own.recur, readout=lambda state, context: own.lm_head(state.chunk(2, dim=-1)[1]), run=run)
