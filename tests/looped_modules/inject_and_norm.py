"""As looped nanochat: the input is let in at every recurrence, a norm closes it; the forward pass gives (logits, state)
and may checkpoint its recurrences in training, as Huginn does."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dynloop.models import hooked_block
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised


class Model(Traced):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.wte, self.inject = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.prelude, self.recur = nn.ModuleList([Layer()]), nn.ModuleList([Layer(), Layer()])
        self.coda, self.norm_recur = nn.ModuleList([Layer()]), nn.RMSNorm(WIDTH, eps=1e-6)
        self.lm_head, self.checkpointed = nn.Linear(WIDTH, VOCABULARY, bias=False), checkpointed

    def embed(self, tokens):
        return self.prelude[0](self.wte(tokens))

    def step(self, s, e, r=0):
        x = self.inject(torch.cat((e, s), dim=-1))
        for i, layer in enumerate(self.recur):
            x = layer(x)
            if i == 0:
                self.note(r, i, "block", x)
        return self.note(r, 1, "block", self.norm_recur(x))

    def readout(self, s, e=None):
        return self.lm_head(self.coda[0](s))

    def forward(self, idx, num_recur=2, warm_start_state=None):
        e = self.embed(idx)
        s = e if warm_start_state is None else warm_start_state
        for r in range(num_recur):
            s = checkpoint(self.step, s, e, r, use_reentrant=False) if self.checkpointed else self.step(s, e, r)
        return self.readout(s), s


def looped(model=None):
    model = initialised(Model) if model is None else model
    own = getattr(model, "_orig_mod", model)
    return hooked_block(
        model, ["recur.0", "norm_recur"], embed=own.embed, initial_state=lambda e, seeds=None: e,
        step=own.step, readout=own.readout, run=lambda tokens, n, state: model(tokens, n, state)[0])
