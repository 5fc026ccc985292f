"""The run's model: built from a table of `run.toml`, sharing its memory with one flat fp32 array, and measured.

Everything here runs on the CPU: a model and its flat array share memory only where numpy can address it.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F

from neurons.errors import ConfigError, ModelError
from protocol.sparseloco.layout import Layout

# Importing transformers' model code takes 2.3 s on top of torch's 1.1 s (one Xeon core, transformers 5.23), so
# it is imported inside build_model: a command that trains nothing does not pay for it.

_BUILDING = threading.Lock()
"""Held while a model is built: initialisation draws from torch's process-wide random generator."""


def build_model(config: Mapping[str, object]) -> torch.nn.Module:
    """A Hugging Face causal language model with fp32 parameters, freshly initialised from torch's generator.

    `config` holds `model_type` and fields of that type's configuration class, nothing else: a misspelt field
    would silently become its default, and the common fields of all configurations can name code to download.
    Dropout that the table does not name is zero. Raises `ConfigError` for what transformers cannot build.
    """
    with _BUILDING:
        return _build(config)


def initial_parameters(config: Mapping[str, object], seed: int) -> np.ndarray:
    """The flat fp32 parameters, shape [P], of a model initialised from `seed`.

    The same call gives the same bits on one machine and one version of torch and transformers, and not
    beyond: θ of window 0 is therefore published as a checkpoint, never recomputed by a joiner.
    """
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return flatten(_build(config))


def parameter_shapes(model: torch.nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of every parameter in `named_parameters` order; a tied parameter appears once."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())


def imagined(config: Mapping[str, object]) -> torch.nn.Module:
    """The model of `config` with shapes and no numbers: nothing is allocated. Raises `ConfigError`."""
    with torch.device("meta"):
        return build_model(config)


def vocabulary_size(model: torch.nn.Module) -> int:
    """How many different tokens the model takes."""
    return int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]


def model_layout(config: Mapping[str, object]) -> Layout:
    """The layout of the model of `config`, of which nothing is allocated. Raises `ConfigError`."""
    return Layout.from_shapes(parameter_shapes(imagined(config)))


def require_positions(config: Mapping[str, object], sequence_tokens: int) -> None:
    """Raise `ConfigError` when the model of `config` is too short for sequences of `sequence_tokens`."""
    positions = getattr(imagined(config).config, "max_position_embeddings", None)
    if positions is not None and positions < sequence_tokens:
        raise ConfigError(
            f"[model]: it has {positions} positions and dataset.sequence_tokens is {sequence_tokens}; "
            "give it as many or more"
        )


def parameter_count(model: torch.nn.Module) -> int:
    """P: how many numbers the flat array of this model holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def flatten(model: torch.nn.Module) -> np.ndarray:
    """A copy of all parameters as one fp32 array, shape [P], in `parameter_shapes` order, row-major."""
    flat = empty_flat(parameter_count(model))
    for parameter, part in _parts(model, flat):
        part.copy_(parameter.detach())
    return flat


def bind(model: torch.nn.Module, flat: np.ndarray) -> None:
    """Make every parameter a view of `flat` (fp32, shape [P], C-contiguous, writable): no copy is made, and a
    change of either is a change of both. Raises `ModelError` when `flat` is not such an array."""
    check_flat(flat, parameter_count(model))
    for parameter, part in _parts(model, flat):
        parameter.data = part


def check_flat(flat: np.ndarray, count: int) -> None:
    """Raise `ModelError` unless `flat` is a writable C-contiguous fp32 array of shape [count]."""
    if flat.dtype != np.float32 or flat.shape != (count,):
        raise ModelError(
            f"the model needs {count} fp32 numbers in one row, got {flat.dtype} of shape {list(flat.shape)}"
        )
    if not (flat.flags.c_contiguous and flat.flags.writeable):
        raise ModelError("the model needs a contiguous, writable array of parameters: pass a copy of this one")


def empty_flat(count: int) -> np.ndarray:
    """An uninitialised fp32 array of shape [count] on a 64-byte boundary: matrix kernels may add in another
    order on memory that is aligned differently, which would make two equal runs differ."""
    return torch.empty(count, dtype=torch.float32).numpy()


def sequence_losses(
    model: torch.nn.Module, sequences: np.ndarray, *, dtype: torch.dtype, batch_sequences: int
) -> np.ndarray:
    """Mean next-token cross entropy of each sequence in nats: float64, shape [n].

    `sequences` holds int64 tokens, shape [n, L]; L − 1 predictions are made for each. The forward pass runs in
    `dtype` (bf16 by autocast), the cross entropy in fp32. At most `batch_sequences` go through at once.
    """
    tokens = as_tokens(sequences)
    losses = np.empty(len(tokens), dtype=np.float64)
    with torch.no_grad(), compute_in(dtype):
        for start in range(0, len(tokens), batch_sequences):
            batch = tokens[start : start + batch_sequences]
            losses[start : start + len(batch)] = token_losses(model, batch).double().mean(dim=1).numpy()
    return losses


def page_gradient(
    model: torch.nn.Module, sequences: np.ndarray, *, dtype: torch.dtype, batch_sequences: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each of `sequences` (int64, shape [n, L]) in nats: float64, shape [n]; and the gradient of their mean:
    fp32, shape [P].

    The model keeps no gradient afterwards. Batches only bound the memory: the mean is over sequences.
    """
    tokens = as_tokens(sequences)
    gradient = empty_flat(parameter_count(model))
    losses = np.empty(len(tokens), dtype=np.float64)
    try:
        bind_gradient(model, gradient)
        for start in range(0, len(tokens), batch_sequences):
            batch = tokens[start : start + batch_sequences]
            with compute_in(dtype):
                each = token_losses(model, batch)
            (each.mean(dim=1).sum() / len(tokens)).backward()  # type: ignore[no-untyped-call]
            # To the bit as in `sequence_losses`: what a step did is the difference of the two.
            losses[start : start + len(batch)] = each.detach().double().mean(dim=1).numpy()
    finally:
        model.zero_grad(set_to_none=True)
    return losses, gradient


def bind_gradient(model: torch.nn.Module, flat: np.ndarray) -> None:
    """Zero `flat` (fp32, shape [P]) and make every parameter's gradient a view of it: backward adds into it."""
    flat.fill(0.0)
    for parameter, part in _parts(model, flat):
        parameter.grad = part


def token_losses(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of every next token: fp32, shape [B, L − 1], for int64 tokens [B, L]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")
    return losses.view(batch.shape[0], -1)


def compute_in(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast for bf16, nothing for fp32. Kept open over several forward passes it casts each weight once, so
    parameters must not change inside."""
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype)


def as_tokens(sequences: np.ndarray) -> torch.Tensor:
    """`sequences` as a torch tensor; `ModelError` unless int64, shape [n ≥ 1, L ≥ 2]."""
    if sequences.dtype != np.int64 or sequences.ndim != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        raise ModelError(
            f"sequences must be int64 of shape [n >= 1, L >= 2], got {sequences.dtype} of {list(sequences.shape)}"
        )
    return torch.tensor(sequences)


def _parts(model: torch.nn.Module, flat: np.ndarray) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Each parameter with the view of `flat` that is its own."""
    whole, offset = torch.from_numpy(flat), 0
    for parameter in model.parameters():
        yield parameter, whole[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()


def _build(config: Mapping[str, object]) -> torch.nn.Module:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, fields = _checked(config)
    try:
        built = AutoConfig.for_model(model_type, **fields, use_cache=False)
        model: torch.nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            built, attn_implementation="sdpa", dtype=torch.float32
        )
    except (StrictDataclassError, ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"[model]: transformers cannot build this {model_type} model: {reason}") from error
    return model


def _checked(config: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The model type, and its fields with every unnamed dropout at zero; `ConfigError` for a type or a field
    that does not exist."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    fields = copy.deepcopy(dict(config))  # transformers fills in nested tables
    model_type = fields.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in CAUSAL:
        raise ConfigError(f"[model]: model_type must be a causal language model of transformers, not {model_type!r}")
    parameters = inspect.signature(CONFIG_MAPPING[model_type]).parameters
    known = set(parameters) - set(inspect.signature(PreTrainedConfig).parameters) - {"use_cache", "kwargs"}
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"[model]: {name!r} is no field of a {model_type} model{hint}")
    dropouts = {name: 0.0 for name in known if "drop" in name and isinstance(parameters[name].default, float)}
    return model_type, dropouts | fields
