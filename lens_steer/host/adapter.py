"""The two hosts, TransformerBridge and HookedTransformer, behind the few things that the rest of lens_steer asks.

This is where their differences live: how the trunk runs without the unembedding, where a forward pass announces its
mask and cache, and what a model says about its own weights.
"""

from __future__ import annotations

import difflib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import version
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError, SiteError
from lens_steer.host.learned import Firing, Learned, count_firings, weight_stamp
from lens_steer.host.origin import describe_origin

Announce = Callable[[Tensor | None, object, int | None], None]
"""Called at the start of every forward pass with (token ids, attention mask or None, tokens already in the cache).

The mask is as the model was given it; the last is None for a cache that does not say.
"""


class Host(ABC):
    """What lens_steer needs to know of one hosted model; get it from `host_of`, never build it."""

    kind: str

    def __init__(self, model: nn.Module) -> None:
        # Weak, so that remembering a host never keeps its model alive.
        self._model = weakref.ref(model)
        self.probing = False  # True while lens_steer tries the model: no clock takes notice
        self.silenced = False  # True while interventions that are attached shall not act
        self.revision = ""  # what `load_model(revision=)` asked for
        self.attached: list[Callable[[], str]] = []  # what identifies each intervention that is on, outermost first
        self._learned = self._start_learning()

    @property
    def model(self) -> Any:
        """The hosted model."""
        model = self._model()
        if model is None:
            raise ModelError("the model behind this host no longer exists")
        return model

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.cfg.n_layers)

    @property
    def context(self) -> int:
        """Most tokens that one text may have, BOS included."""
        return int(self.model.cfg.n_ctx)

    @property
    def vocabulary(self) -> int:
        """Number of token ids (`cfg.d_vocab` becomes a tokenizer's when a bridge is given another one)."""
        return int(self.model.W_E.shape[0])

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights (`cfg.dtype` can be wrong on a model that was passed in)."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; ModelError where it has none."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise ModelError("this model has no tokenizer: pass one to load_model(..., tokenizer=)")
        return tokenizer

    @property
    def prepends_bos(self) -> bool:
        """Whether texts start with the BOS token on this model."""
        wanted = bool(getattr(self.model.cfg, "default_prepend_bos", True))
        # TransformerLens invents a BOS for a tokenizer without special tokens, with an id that no embedding has.
        bos = self.tokenizer.bos_token_id
        return wanted and bos is not None and bos < self.vocabulary

    def refresh(self) -> None:
        """Forget what was tried on the model if its weights, its switches or its processing changed since.

        Called at the start of whatever looks for sites, edits them or compares the model with another.
        """
        if weight_stamp(self.model) != self._learned.stamp:
            self._learned = self._start_learning()

    def _start_learning(self) -> Learned:
        names = {name: str(point.name) for name, point in self.model.hook_dict.items()}
        return Learned(weight_stamp(self.model), names)

    @property
    def checked_sites(self) -> set[str]:
        """Names of the sites where a write was tried and does what it says."""
        return self._learned.checked_sites

    @property
    def checked_fingerprints(self) -> set[int]:
        """Hashes of the fingerprints that this model was found to have."""
        return self._learned.checked_fingerprints

    @property
    def readings(self) -> dict[str, Any]:
        """What was read on the probe of the bare model, by what was asked for."""
        return self._learned.readings

    @property
    def _canonical(self) -> dict[str, str]:
        return self._learned.canonical

    @property
    def hook_names(self) -> Iterable[str]:
        """Every name under which a hook point can be asked for, aliases included."""
        return self._canonical.keys()

    def canonical(self, name: str) -> str:
        """Return the host's own name of a hook point; SiteError (with the nearest names) where there is none."""
        if name not in self._canonical:
            near = difflib.get_close_matches(name, list(self._canonical), n=5, cutoff=0.3)
            raise SiteError(f"no site is named {name!r}; the nearest names here are {', '.join(near) or 'none'}")
        return self._canonical[name]

    @property
    def probe_length(self) -> int:
        """A number of tokens that no axis of heads has, so that the position axis can be told from it."""
        cfg = self.model.cfg
        taken = {cfg.n_heads, cfg.n_heads * 2, getattr(cfg, "n_key_value_heads", None), cfg.d_head}
        return next(length for length in (5, 6, 7, 9, 10, 11) if length not in taken)

    @property
    def _firings(self) -> dict[str, Firing]:
        """Canonical name -> how it fires, in one forward pass of the trunk over `probe_length` tokens."""
        if self._learned.firings is None:
            self._learned.firings = self._probe_firings()
        return self._learned.firings

    def _probe_firings(self) -> dict[str, Firing]:
        points = {str(point.name): point for name, point in self.model.hook_dict.items() if name.startswith("blocks.")}
        firings: dict[str, Firing] = {}
        hook = count_firings(firings)
        ids = self.probe_ids(self.probe_length)
        names = [name for name, point in sorted(points.items()) if self._takes_hooks(name, point, hook)]
        with torch.no_grad(), self.bare(), self.model.hooks(fwd_hooks=[(name, hook) for name in names]):
            self.trunk(ids, torch.ones_like(ids, dtype=torch.bool))
        return firings

    def _takes_hooks(self, name: str, point: Any, hook: Callable[..., Any]) -> bool:
        """Whether a hook may hang at a point: those behind a set_use_* switch that is off refuse, and do not fire."""
        with suppress(ValueError, AssertionError):
            check = self.model.check_hooks_to_add
            # A bridge of transformer-lens 3.9 asks for the name alone.
            check(*((point, name, hook) if "hook_point" in signature(check).parameters else (name,)))
            return True
        return False

    def hooks(self, pairs: Iterable[tuple[str, Callable[..., Any]]]) -> AbstractContextManager[Any]:
        """Attach (name, hook) pairs for the length of a context, by canonical name.

        In compatibility mode a bridge calls a hook once per name it knows the point by; the canonical name is one.
        """
        context: AbstractContextManager[Any] = self.model.hooks(fwd_hooks=[(self.canonical(n), f) for n, f in pairs])
        return context

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Run what is inside as if nothing hung on the model: hooks and edits of before neither act nor take notice."""
        points = {id(point): point for point in self.model.hook_dict.values()}.values()
        hidden = [(point._forward_hooks, dict(point._forward_hooks)) for point in points if point._forward_hooks]
        before, self.probing = self.probing, True
        for hooks, _ in hidden:
            hooks.clear()
        try:
            yield
        finally:
            self.probing = before
            for hooks, own in hidden:
                hooks.update(own)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Run what is inside without interventions and their clocks; plain hooks act."""
        before = self.probing, self.silenced
        self.probing = self.silenced = True
        try:
            yield
        finally:
            self.probing, self.silenced = before

    def firing(self, name: str) -> Firing | None:
        """Return how a hook point fires in a forward pass; None where it does not."""
        return self._firings.get(self.canonical(name))

    def firing_order(self, name: str) -> int:
        """Rank of a hook point in a forward pass."""
        return self._firings[self.canonical(name)].order

    def probe_ids(self, length: int) -> Int[Tensor, "1 pos"]:
        """Return fixed token ids, spread over the vocabulary: the same for every copy of a model."""
        steps = torch.arange(1, length + 1, dtype=torch.long)
        return ((steps * 7919) % self.vocabulary)[None].to(self.device)

    @property
    def provenance(self) -> dict[str, str]:
        """What names the model and its host in an artifact; what identifies it is its fingerprint.

        `origin` is there where the weights came from a GGUF file or the model cache: file, hash and quantisation.
        """
        cfg = self.model.cfg
        config = getattr(getattr(self.model, "original_model", None), "config", None)
        revisions = (getattr(cfg, "checkpoint_value", None), self.revision, getattr(config, "_commit_hash", None))
        origin = describe_origin(config)
        return {
            "model": str(getattr(config, "_name_or_path", "") or getattr(cfg, "model_name", "") or "unnamed"),
            "revision": next((str(revision) for revision in revisions if revision), ""),
            "host": self.kind,
            "weights": self.weight_processing,
            "dtype": str(self.dtype).removeprefix("torch."),
            "transformer_lens": version("transformer-lens"),
            **({"origin": origin} if origin else {}),
        }

    @property
    @abstractmethod
    def weight_processing(self) -> str:
        """How the host changed the checkpoint's weights: "raw", or what was folded or centred."""

    @abstractmethod
    def trunk(self, ids: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> None:
        """Run all blocks, without the unembedding; what is wanted is read by hooks."""

    @abstractmethod
    def logits(self, ids: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> Float[Tensor, "text _ vocab"]:
        """Run the model on right- or left-padded texts."""

    @abstractmethod
    def on_forward(self, announce: Announce) -> list[Any]:
        """Call `announce` at the start of every forward pass, on every route; returns handles with `.remove()`."""


def position_ids(mask: Bool[Tensor, "text pos"]) -> Int[Tensor, "text pos"]:
    """Return each token's position among its row's real tokens (0 for pads)."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


class BridgeHost(Host):
    """A TransformerBridge: hooks on the live Hugging Face modules."""

    kind = "TransformerBridge"

    @property
    def weight_processing(self) -> str:
        """Raw unless `enable_compatibility_mode()` folded and centred the weights."""
        return "compatibility mode" if getattr(self.model, "compatibility_mode", False) else "raw"

    def _arguments(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        left_padded = not bool(mask[:, 0].all())
        positions = {"position_ids": position_ids(mask)} if left_padded else {}
        return {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False, **positions}

    def trunk(self, ids: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> None:
        """Run the Hugging Face base model: every block's hooks fire, the head does not run."""
        self.model.original_model.base_model(**self._arguments(ids, mask))

    def logits(self, ids: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> Float[Tensor, "text _ vocab"]:
        """Run the Hugging Face model."""
        logits: Tensor = self.model.original_model(**self._arguments(ids, mask)).logits
        return logits

    def on_forward(self, announce: Announce) -> list[Any]:
        """Watch the base model, which every route passes, also the trunk alone."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            cache, state = kwargs.get("past_key_values"), kwargs.get("cache_params")
            cached = 0 if cache is None else int(cache.get_seq_length())
            announce(ids, kwargs.get("attention_mask"), cached if state is None else None)

        return [self.model.original_model.base_model.register_forward_pre_hook(before, with_kwargs=True)]


class HookedTransformerHost(Host):
    """A HookedTransformer of transformer-lens 3.9: its own implementation of the architecture."""

    kind = "HookedTransformer"

    @property
    def weight_processing(self) -> str:
        """What `from_pretrained` folded, as far as the config tells."""
        normalization = str(self.model.cfg.normalization_type or "")
        return "norms folded" if normalization.endswith("Pre") else "raw"

    def trunk(self, ids: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> None:
        """Run the blocks; `stop_at_layer` at the number of layers leaves out the unembedding."""
        self.model(ids, attention_mask=mask.long(), stop_at_layer=self.n_layers)

    def logits(self, ids: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> Float[Tensor, "text _ vocab"]:
        """Run the model."""
        logits: Tensor = self.model(ids, attention_mask=mask.long())
        return logits

    def on_forward(self, announce: Announce) -> list[Any]:
        """Take ids at the embedding and mask and cache at the first block: `generate` calls neither model hook."""
        fresh: list[Tensor] = []  # embedded since the last pass
        last: list[Tensor] = []  # the ids of the last pass that had no cache

        def embedding(_module: nn.Module, args: tuple[Any, ...]) -> None:
            fresh[:] = [args[0]] if args and isinstance(args[0], Tensor) else []

        def first_block(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            entry = kwargs.get("past_kv_cache_entry")
            cached = 0 if entry is None else int(entry.past_keys.shape[1])
            length = int(args[0].shape[1])
            ids = fresh[0] if fresh else None
            # Without a cache `generate` embeds the new tokens alone and lays them behind what it embedded before.
            if ids is not None and cached == 0 and last and ids.shape[1] + last[0].shape[1] == length:
                ids = torch.cat([last[0], ids], 1)
            fresh.clear()
            last[:] = [ids] if ids is not None and cached == 0 else []
            known = ids is not None and ids.shape[1] == length
            announce(ids if known else None, kwargs.get("attention_mask"), cached)

        return [
            self.model.embed.register_forward_pre_hook(embedding),
            self.model.blocks[0].register_forward_pre_hook(first_block, with_kwargs=True),
        ]


_HOSTS: weakref.WeakKeyDictionary[nn.Module, Host] = weakref.WeakKeyDictionary()
_WRAPPED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()


def host_of(model: nn.Module) -> Host:
    """Return the host of a TransformerLens model, the same one at every call.

    Raises
    ------
    ModelError
        The object is no TransformerLens model, it does not continue texts, or its Hugging Face model already lives in
        another bridge.

    """
    if model in _HOSTS:
        return _HOSTS[model]
    # By name: importing HookedTransformer is an error in transformer-lens 4, and importing either takes seconds.
    lineage = {base.__name__ for base in type(model).__mro__}
    if "TransformerBridge" in lineage:
        require_causal(model.original_model)
        _refuse_second_bridge(model)
        host: Host = BridgeHost(model)
    elif "HookedTransformer" in lineage:
        host = HookedTransformerHost(model)
    else:
        raise ModelError(
            f"a TransformerLens model is needed, not {type(model).__name__}; wrap it with lens_steer.load_model(...)"
        )
    _HOSTS[model] = host
    return host


def require_causal(original: Any) -> None:
    """Refuse a Hugging Face model that does not predict the next token of a text: encoder-decoders and encoders."""
    config = getattr(original, "config", None)
    kind = getattr(config, "model_type", type(original).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind!r} is an encoder-decoder: lens_steer hosts decoders, which continue a text, only")
    if hasattr(original, "can_generate") and not original.can_generate():
        raise ModelError(
            f"{type(original).__name__} ({kind!r}) does not continue texts: lens_steer hosts decoders with their head, "
            "as AutoModelForCausalLM loads them"
        )


def _refuse_second_bridge(bridge: Any) -> None:
    original = bridge.original_model
    other = _WRAPPED[original]() if original in _WRAPPED else None
    if other is not None and other is not bridge:
        raise ModelError(
            "this Hugging Face model already lives in another TransformerBridge, whose attention hooks a second one "
            "silently disables: keep using the first bridge, or load the model again"
        )
    _WRAPPED[original] = weakref.ref(bridge)
