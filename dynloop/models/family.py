"""What the adapters share: recognising a family, bringing in a checkpoint, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.by_name import families
from dynloop.models.looped_model import unwrapped

# Tied weights as transformers 5 wants them, for checkpoints whose own code still names a list.
TIED = {"huginn_raven": "transformer.wte.weight", "ouro": "model.embed_tokens.weight"}


def has(module: Any, path: str) -> bool:
    """Whether `module` has the attribute at a dotted path; a ModuleDict has its keys."""
    for part in path.split("."):
        if isinstance(module, nn.ModuleDict):
            if part not in module:
                return False
            module = module[part]
        elif not hasattr(module, part):
            return False
        else:
            module = getattr(module, part)
    return True


def bears(module: nn.Module, signs: Sequence[str]) -> bool:
    """Whether a model has the attributes of a family, and has not those after "not "; nobody's code is imported."""
    return all(not has(module, sign[4:]) if sign.startswith("not ") else has(module, sign) for sign in signs)


def opened(model: nn.Module | str | Path, family: str, signs: Sequence[str],
           bring: Callable[[str], nn.Module] | None = None) -> nn.Module:
    """The module itself, without the wrapper of `torch.compile`; a path or name is brought in by `bring`.

    Raises:
        ValueError: the model is not of this family, or the family's checkpoints cannot be opened here.
    """
    if not isinstance(model, nn.Module):
        if bring is None:
            raise ValueError(f"{family} takes a model object; got {str(model)!r}. These checkpoints open with the "
                             "family's own repository alone: build the model there, load its weights, and pass it.")
        model = bring(str(model))
    module = unwrapped(model)
    if not bears(module, signs):
        found = next((name for name, home in families() if hasattr(home, "recognises") and home.recognises(module)), "")
        raise ValueError(f"{type(module).__name__} is no {family} model, which has {', '.join(signs)}. " +
                         (f"It looks like {found}: use dynloop.models.{found}, or load." if found else
                          "For a model of no known family describe the loop with dynloop.models.hooked_block."))
    if wrong := [type(part).__name__ for part, _ in _spoilt_tables(module)]:
        raise ValueError(f"the rotary positions of this {type(module).__name__} ({wrong[0]}) are not those of its "
                         "configuration: transformers 5 leaves tables that are not in the checkpoint uninitialised, "
                         "where the model's own code does not fill them. Load it with dynloop.models.load, which does.")
    return module


def _spoilt_tables(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Modules of rotary positions whose frequencies are not those that they are made with, and a new one of each."""
    for part in module.modules():
        if "inv_freq" not in part._non_persistent_buffers_set or not hasattr(part, "config"):
            continue
        try:
            fresh = type(part)(part.config)
        except Exception:  # made in another way: nothing to compare with
            continue
        # the table in use may follow the length of a prompt; beside it then lies the one that it was made with
        name = "original_inv_freq" if "original_inv_freq" in part._buffers else "inv_freq"
        if name == "inv_freq" and getattr(part, "rope_type", "default") != "default":
            continue
        held, made = getattr(part, name), getattr(fresh, name)
        if held.shape != made.shape or held.is_meta or not torch.allclose(
                held.cpu().float(), made.cpu().float(), rtol=1e-2, atol=1e-7):
            yield part, fresh


def transformers() -> Any:
    """The package, which is optional."""
    try:
        import transformers
    except ImportError:
        raise ImportError("checkpoints of this family open with transformers, which is not installed. Run "
                          "`pip install dynloop[transformers]`, or pass a model object.") from None
    return transformers


def pretrained(source: str, *, head: str = "AutoModelForCausalLM", trust_remote_code: bool = False) -> nn.Module:
    """A checkpoint of the transformers kind, from a folder or by name.

    Code that comes with a checkpoint runs only if `trust_remote_code`. Where that code was written for transformers 4
    and would not run with 5, the following is put right, and nothing else: weights tied by a list become a mapping,
    a missing padding token is None, the plain rotary embedding gets its entry back, and rotary frequencies that are in
    no checkpoint are computed anew.
    """
    hub = transformers()
    config = hub.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    remote = getattr(config, "auto_map", None) or {}
    if head not in remote:
        return getattr(hub, head).from_pretrained(source, config=config)
    if not trust_remote_code:
        raise ValueError(f"{source} brings its own code. Read it, then pass trust_remote_code=True.")
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    kind: Any = get_class_from_dynamic_module(remote[head], source)
    if int(hub.__version__.split(".")[0]) >= 5:
        tied = TIED.get(config.model_type)
        for part in kind.__mro__:
            if isinstance(vars(part).get("_tied_weights_keys"), list):
                part._tied_weights_keys = dict.fromkeys(part._tied_weights_keys, tied) if tied else {}
        if not hasattr(kind, "all_tied_weights_keys"):  # which post_init() sets, where it is called
            kind.all_tied_weights_keys = dict(kind._tied_weights_keys or {}) if config.tie_word_embeddings else {}
        if not hasattr(config, "pad_token_id"):
            config.pad_token_id = None
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        ROPE_INIT_FUNCTIONS.setdefault("default", _plain_rotary)
    model = kind.from_pretrained(source, config=config)
    for part, fresh in list(_spoilt_tables(model)):
        for name in part._non_persistent_buffers_set:
            setattr(part, name, getattr(fresh, name).to(model.device))
    return model


def _plain_rotary(config: Any, device: Any = None, **unused: Any) -> tuple[torch.Tensor, float]:
    """Frequencies of rotary positions (Su et al. 2021), as transformers 4 had them under the name "default"."""
    base = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return base ** -(torch.arange(0, width, 2, dtype=torch.int64).to(device, torch.float) / width), 1.0


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and values of every weight and saved buffer."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        if not isinstance(weight, torch.Tensor):  # extra state of a module
            digest.update(f"{name} {weight!r}".encode())
            continue
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def described(module: nn.Module, family: str, given: Any) -> dict[str, Any]:
    """Provenance: family, class, configuration, hash, and where the model came from, if that is known."""
    config: Any = getattr(module, "config", {})
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    elif hasattr(config, "to_dict"):
        config = config.to_dict()
    elif hasattr(config, "model_dump"):
        config = config.model_dump()
    found = {"family": family, "class": type(module).__name__, "sha256": weights_hash(module),
             "parameters": sum(weight.numel() for weight in module.parameters()),
             "model": json.loads(json.dumps(config, default=str))}
    source = given if isinstance(given, str | Path) else getattr(module, "name_or_path", "")
    if source:
        found["source"] = str(source)
    if attention := getattr(getattr(module, "config", None), "_attn_implementation", None):
        found["attention"] = attention
    return found


def label(module: nn.Module, family: str, name: str | None) -> str:
    """How the model is called: as told, else as its folder or checkpoint, else as its family."""
    return name or Path(str(getattr(module, "name_or_path", "") or family)).name


def encoder(module: nn.Module, tokenizer: Any, name: str) -> Callable[[str], list[int]]:
    """Text -> token numbers: by `tokenizer`, or by the one that lies beside the checkpoint, special tokens included."""
    found = tokenizer

    def encode(text: str) -> list[int]:
        nonlocal found
        if found is None:
            found = _tokenizer_beside(str(getattr(module, "name_or_path", "")), name)
        return [int(token) for token in (found.encode(text) if hasattr(found, "encode") else found(text))]
    return encode


def _tokenizer_beside(source: str, name: str) -> Any:
    folder, why = Path(source), ""
    if source and not (folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("spiece*"))):
        try:  # of an empty folder transformers makes a tokenizer that knows no word
            return transformers().AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, ImportError) as error:
            why = f" ({error})"
    raise ValueError(f"{name} has no tokenizer here{why}. Pass prompts as lists of token numbers, or tokenizer= "
                     "(a function, or an object with .encode).")


def drawn(like: torch.Tensor, seeds: Sequence[int] | None,
          draw: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Random states (batch, tokens, features), each prompt's from its own seed.

    The family's own code draws them, one prompt at a time, on the CPU and in float32: neither the batch nor the device
    nor the precision changes them, and the global random state stays as it was.

    Args:
        like: embedded prompts (batch, tokens, width), for shape, type and device.
        seeds: one a prompt; by default 0, 1, 2, ...
        draw: template (1, tokens, width) -> states of one prompt.
    """
    seeds = range(len(like)) if seeds is None else seeds
    if len(seeds) != len(like):
        raise ValueError(f"one seed a prompt is needed: got {len(seeds)} seeds for {len(like)} prompts.")
    rows = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed in seeds:
            torch.default_generator.manual_seed(int(seed))  # of the processor alone
            rows.append(draw(torch.empty(1, *like.shape[1:], dtype=torch.float32)))
    return torch.cat(rows).to(like)


def run_and_generate(once: Callable[..., Any],
                     begin: Callable[[torch.Tensor], torch.Tensor | None]) -> tuple[Callable, Callable]:
    """`run` and `generate` of a specification, of a family whose forward pass takes and gives a cache.

    Args:
        once: (tokens, state, n_recurrences, first position, **settings of the forward pass) -> its output, with logits.
        begin: tokens -> the state that new ones start from; None where the forward pass makes it itself.
    """
    def run(tokens: torch.Tensor, n_recurrences: int, state: torch.Tensor) -> torch.Tensor:
        return once(tokens, state, n_recurrences, 0, use_cache=False).logits

    def generate(tokens: torch.Tensor, n_recurrences: int, state: torch.Tensor, n_new_tokens: int) -> torch.Tensor:
        cache, following, own, seen = None, tokens, state, 0
        for _ in range(n_new_tokens):
            out = once(following, own, n_recurrences, seen, use_cache=True, past_key_values=cache)
            seen += following.shape[1]
            following, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            tokens, own = torch.cat((tokens, following), dim=1), begin(following)  # type: ignore[assignment]
        return tokens

    return run, generate


def masks(kind: str, config: Any, embedded: torch.Tensor) -> torch.Tensor | None:
    """What transformers gives its layers as attention mask for unpadded prompts: None, or one row a prompt.

    Args:
        kind: "causal" or "sliding_window_causal".
        config: the model's configuration.
        embedded: (batch, tokens, width).
    """
    from transformers import masking_utils
    make = getattr(masking_utils, f"create_{kind}_mask")
    takes = inspect.signature(make).parameters
    positions = torch.arange(embedded.shape[1], device=embedded.device)
    given = {"config": config, "attention_mask": None, "past_key_values": None, "position_ids": positions[None],
             "cache_position": positions, "inputs_embeds": embedded, "input_embeds": embedded}
    mask = make(**{name: value for name, value in given.items() if name in takes})
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"attention {config._attn_implementation!r} has no mask of numbers, so that the block cannot "
                         "be applied by itself. Load the model with attn_implementation='sdpa' or 'eager'.")
    return mask.expand(len(embedded), *mask.shape[1:])
