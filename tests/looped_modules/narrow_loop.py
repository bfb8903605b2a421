"""As Parcae: the loop has a width of its own and lets the input in through a diagonal linear system; the state is read
where it enters the block's norm."""

import torch
from torch import nn

from dynloop.models import hooked_block
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised

NARROW = 8


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.wte, self.down, self.up = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, NARROW), \
            nn.Linear(NARROW, WIDTH)
        self.decay = nn.Parameter(torch.linspace(0.2, 0.8, NARROW))
        self.core_block = nn.ModuleList([Layer(width=NARROW)])
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def embed(self, tokens):
        return self.down(self.wte(tokens))

    def initial_state(self, e, *, seeds=None):
        return torch.stack([torch.randn(e.shape[1:], generator=torch.Generator().manual_seed(s))
                            for s in (range(len(e)) if seeds is None else seeds)]).to(e)

    def recur(self, x, e, r=0):
        return self.note(r, 0, "block", self.core_block[0](self.decay * x + e))

    def readout(self, x, e=None):
        return self.head(self.up(x))

    def forward(self, tokens, num_steps_pair=(0, 2), state=None):
        e = self.embed(tokens)
        x = self.initial_state(e) if state is None else state
        with torch.no_grad():
            for r in range(num_steps_pair[0]):
                x = self.recur(x, e, r)
        for r in range(num_steps_pair[0], sum(num_steps_pair)):
            x = self.recur(x, e, r)
        return self.readout(x)


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)
    return hooked_block(
        model, ["core_block.0"], embed=own.embed, initial_state=own.initial_state, step=own.recur, readout=own.readout,
        random_start=True, run=lambda tokens, n, state: model(tokens, num_steps_pair=(n - 1, 1), state=state))
