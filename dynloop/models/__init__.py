"""Looped-model families, one a file, behind one protocol.

A family's file is named after its one public function, which takes a model (or the name or folder of a checkpoint) and
returns a `LoopedModel`. It may say by `MODEL_TYPES`, the `model_type` values of a `config.json`, and by
`recognises(module)` which checkpoints and modules are its own; `load` then finds it.
"""

from dynloop.models.albert import albert
from dynloop.models.feed_forward import feed_forward
from dynloop.models.hooked_block import hooked_block
from dynloop.models.hrm import hrm
from dynloop.models.hrm_text import hrm_text
from dynloop.models.huginn import huginn
from dynloop.models.inspect_loop import inspect_model
from dynloop.models.load import load
from dynloop.models.looped_model import LoopedModel, Missing, StatePoint, temporarily, undisturbed
from dynloop.models.looped_nanochat import looped_nanochat
from dynloop.models.nano import nano
from dynloop.models.ouro import ouro
from dynloop.models.parcae import parcae
from dynloop.models.recorder import recording
from dynloop.models.retrofit import retrofit
from dynloop.models.trm import trm
from dynloop.models.unembedding import Unembedding
from dynloop.models.untrained import untrained
from dynloop.models.verify import Verification, verify

__all__ = ["LoopedModel", "Missing", "StatePoint", "Unembedding", "Verification", "albert", "feed_forward",
           "hooked_block", "hrm", "hrm_text", "huginn", "inspect_model", "load", "looped_nanochat", "nano", "ouro",
           "parcae", "recording", "retrofit", "temporarily", "trm", "undisturbed", "untrained", "verify"]
