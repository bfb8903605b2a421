"""As OpenMythos: the loop knows its index (no autonomous map), and ends when every token has halted."""

import torch
from torch import nn

from dynloop.models import hooked_block
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised


class Model(Traced):
    def __init__(self):
        super().__init__()
        self.wte, self.block, self.head = nn.Embedding(VOCABULARY, WIDTH), Layer(norm="post"), \
            nn.Linear(WIDTH, VOCABULARY)
        self.halt = nn.Linear(WIDTH, 1)

    def recur(self, x, e, recurrence=0):
        index = torch.sin(torch.arange(WIDTH, device=x.device) * (1.0 + recurrence)).to(x)
        return self.note(recurrence, 0, "block", self.block(x + e + index))

    def forward(self, tokens, n_loops=4, state=None):
        e = self.wte(tokens)
        x = e if state is None else state
        halted = torch.zeros(x.shape[:2]).to(x)
        for r in range(n_loops):
            x = self.recur(x, e, r)
            halted = halted + 0.6 * self.halt(x)[..., 0].sigmoid()
            if (halted > 1).all():
                break
        return self.head(x)


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)
    return hooked_block(
        model, ["block"], embed=own.wte, initial_state=lambda e, seeds=None: e, step=own.recur, autonomous=False,
        ragged=True, readout=lambda x, e: own.head(x),
        run=lambda tokens, n, state: model(tokens, n_loops=n, state=state))
