"""The weights of a hosted bridge as those of a plain Hugging Face model: read, changed in a copy, built anew.

What differs between architectures lives here: where a block's projections and norms are, which way round their weights
lie, which config switch gives them a bias, and what a norm adds to its weight. The hosted model is only read.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import BridgeHost, host_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_WRAPPER = "._original_component"
_BIAS_SWITCHES = {"attn": "attention_bias", "mlp": "mlp_bias"}
_READERS = {"ln1": ("attn.q", "attn.k", "attn.v"), "ln2": ("mlp.gate", "mlp.in")}


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear part of a block: the module that holds it in the plain model, and which of its outputs are meant.

    `outputs` is None for a module of its own; q, k and v often share one. `transposed`: weights lie [in, out].
    """

    part: str
    module: str
    transposed: bool
    outputs: Int[Tensor, " out"] | None = None


@dataclass(frozen=True)
class Norm:
    """A norm of a block: its module in the plain model, and what it adds to its weight (1 for Gemma)."""

    part: str
    module: str
    offset: float
    biased: bool


class PlainWeights:
    """A copy in the making: names are the plain model's, values float64, and only what was changed is held.

    Raises
    ------
    ModelError
        The model is a HookedTransformer, a bridge whose weights were folded and centred, carries an adapter, or is of
        no causal architecture that plain transformers has.

    """

    def __init__(self, model: nn.Module) -> None:
        host = host_of(model)
        if host.kind != BridgeHost.kind:
            raise ModelError(
                f"a {host.kind} holds no Hugging Face model that an edit could be baked into: fit or load the "
                "intervention on the bridge that load_model(dir) gives, and bake that"
            )
        if host.weight_processing != "raw":
            raise ModelError(
                "enable_compatibility_mode() has folded and centred this bridge's weights, so they are no plain "
                "model's any more: load the model again with load_model(dir)"
            )
        self._host = host
        self._original: Any = host.model.original_model
        _refuse_adapters(self._original)
        self.config: PretrainedConfig = _plain_config(self._original.config)
        self._modules = dict(_meta(self.config).named_modules())
        wrapped = self._original.named_modules(remove_duplicate=False)
        paths = ((module, name.replace(_WRAPPER, "")) for name, module in wrapped)
        self._paths = {id(module): path for module, path in paths if path in self._modules}
        self._state = {name.replace(_WRAPPER, ""): value for name, value in self._original.state_dict().items()}
        self._changed: dict[str, Tensor] = {}
        self._switched: dict[str, nn.Module] = {}  # switch of the config -> the model's modules with it on

    @property
    def architecture(self) -> str:
        """The Hugging Face name of the model's kind, for messages."""
        return str(self.config.model_type)

    def projection(self, layer: int, part: str) -> Projection | None:
        """Return a linear part of a block (`attn.o`, `mlp.in`); None where there is none with weights of its own."""
        component = self._component(layer, part)
        path = None if component is None else self._paths.get(id(component.original_component))
        if path is not None:
            return Projection(part, path, self._transposed(path))
        joint = self._component(layer, "attn.qkv")
        joint_path = None if joint is None else self._paths.get(id(joint.original_component))
        if component is None or joint_path is None or part not in _READERS["ln1"]:
            return None
        outputs = self._rows_of(component.original_component.weight, joint_path, _READERS["ln1"].index(part))
        return None if outputs is None else Projection(part, joint_path, self._transposed(joint_path), outputs)

    def norm(self, layer: int, part: str) -> Norm | None:
        """Return a norm of a block (`ln1`, `ln2_post`); None where there is none, or one without a weight."""
        component = self._component(layer, part)
        path = None if component is None else self._paths.get(id(component.original_component))
        if path is None or getattr(self._modules[path], "weight", None) is None:
            return None
        module = self._modules[path]
        offset = _offset_of(component.original_component)
        return Norm(part, path, offset, getattr(module, "bias", None) is not None)

    def readers(self, layer: int, norm: Norm) -> tuple[Projection, ...]:
        """Return the projections that read a norm's output; none for a norm of a branch's output."""
        projections = (self.projection(layer, part) for part in _READERS.get(norm.part, ()))
        return tuple(projection for projection in projections if projection is not None)

    def has_bias(self, projection: Projection) -> bool:
        """Whether a shift has a place to go: a bias, or a switch in the config that gives one."""
        if f"{projection.module}.bias" in self._state:
            return True
        switch = self._switch_of(projection)
        if not hasattr(self.config, switch):
            return False
        if switch not in self._switched:
            config = copy.deepcopy(self.config)
            setattr(config, switch, True)
            self._switched[switch] = _meta(config)
        return getattr(self._switched[switch].get_submodule(projection.module), "bias", None) is not None

    def read(self, projection: Projection) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
        """Return weight and bias as they now are (zeros where there is no bias)."""
        weight = self._value(f"{projection.module}.weight")
        weight = weight.T if projection.transposed else weight
        bias = self._value(f"{projection.module}.bias", zeros=weight.shape[0])
        if projection.outputs is None:
            return weight, bias
        return weight[projection.outputs], bias[projection.outputs]

    def write(self, projection: Projection, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> None:
        """Set weight and bias; a bias that the model does not have yet is switched on in the config."""
        if projection.outputs is not None:
            whole_weight, whole_bias = self.read(Projection(projection.part, projection.module, projection.transposed))
            weight = whole_weight.index_copy(0, projection.outputs, weight)
            bias = whole_bias.index_copy(0, projection.outputs, bias)
        self._changed[f"{projection.module}.weight"] = weight.T if projection.transposed else weight
        name = f"{projection.module}.bias"
        if name in self._state or name in self._changed or bool(bias.any()):
            self._changed[name] = bias
        if name not in self._state and name in self._changed:
            setattr(self.config, self._switch_of(projection), True)

    def read_norm(self, norm: Norm) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
        """Return what a norm multiplies by (its offset included) and adds."""
        weight = self._value(f"{norm.module}.weight")
        return weight + norm.offset, self._value(f"{norm.module}.bias", zeros=weight.shape[0])

    def write_norm(self, norm: Norm, weight: Float[Tensor, " unit"], bias: Float[Tensor, " unit"]) -> None:
        """Set what a norm multiplies by and, where it has a bias, adds."""
        self._changed[f"{norm.module}.weight"] = weight - norm.offset
        if norm.biased:
            self._changed[f"{norm.module}.bias"] = bias

    def entering_embedding(self) -> str | None:
        """Return the table of embeddings that serves for what enters the first block and nothing else, if there is one.

        Learned positions do. Token embeddings do where they are not tied to the unembedding and not scaled.
        """
        table = getattr(self._host.model, "pos_embed", None)
        if table is None and not getattr(self.config, "tie_word_embeddings", True):
            table = self._host.model.embed
        path = None if table is None else self._paths.get(id(table.original_component))
        return None if path is None or type(self._modules[path]) is not nn.Embedding else path

    def shift_embedding(self, table: str, shift: Float[Tensor, " unit"]) -> None:
        """Add to every row of a table of embeddings."""
        self._changed[f"{table}.weight"] = self._value(f"{table}.weight") + shift

    def build(self) -> PreTrainedModel:
        """Return the plain model: eval mode, the hosted model's dtype and device, no storage in common with it."""
        from transformers.initialization import no_init_weights

        with no_init_weights():
            plain = _from_config(self.config, dtype=self._host.dtype)
        state = {name: self._final(name, value) for name, value in plain.state_dict().items()}
        plain.load_state_dict(state, strict=True)
        plain.tie_weights()
        plain.generation_config = copy.deepcopy(self._original.generation_config)
        nn.Module.to(plain, self._host.device)
        nn.Module.eval(plain)
        return plain

    def _final(self, name: str, place: Tensor) -> Tensor:
        value = self._changed.get(name, self._state.get(name))
        if value is None and not name.endswith(".bias"):  # a bias may have been switched on
            raise ModelError(f"the hosted model has no weight {name!r}, which a plain {self.architecture} model needs")
        return torch.zeros_like(place) if value is None else value.to(place.dtype)

    def _component(self, layer: int, part: str) -> Any:
        try:
            return self._host.model.blocks[layer].get_submodule(part)
        except AttributeError:
            return None

    def _transposed(self, path: str) -> bool:
        return type(self._modules[path]).__name__ == "Conv1D"

    def _value(self, name: str, *, zeros: int = 0) -> Tensor:
        value = self._changed.get(name, self._state.get(name))
        if value is None:
            return torch.zeros(zeros, dtype=torch.float64)
        return value.detach().to("cpu", torch.float64, copy=True)

    def _rows_of(self, split: Tensor, joint: str, place: int) -> Int[Tensor, " out"] | None:
        """Find where q, k or v lies in a joint projection: in thirds (GPT-2), or head by head (NeoX)."""
        weight = self._state[f"{joint}.weight"]
        weight = weight.T if self._transposed(joint) else weight
        if weight.shape[0] % 3 != 0:
            return None
        heads, every = int(self._host.model.cfg.n_heads), torch.arange(weight.shape[0])
        thirds = rearrange(every, "(three out) -> three out", three=3)
        by_head = rearrange(every, "(head three dim) -> three (head dim)", three=3, head=heads)
        matching = (rows[place] for rows in (thirds, by_head) if torch.equal(weight[rows[place]], split))
        return next(matching, None)

    def _switch_of(self, projection: Projection) -> str:
        return _BIAS_SWITCHES[projection.part.split(".")[0]]


def _refuse_adapters(original: nn.Module) -> None:
    """Refuse a model that carries peft adapters: its layers are no plain model's, and their share is in no weight."""
    modules = original.named_modules()
    layers = (name.replace(_WRAPPER, "") for name, module in modules if type(module).__module__.startswith("peft."))
    adapted = next(layers, "a layer" if getattr(original, "peft_config", None) else None)
    if adapted is not None:
        raise ModelError(
            f"this model carries an adapter (first at {adapted}), which no plain model has: merge it first, "
            "load_model(peft_model.merge_and_unload())"
        )


def _plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config without what the bridge asks of its own model: eager attention that hands out its patterns."""
    plain: PretrainedConfig = type(config).from_dict(config.to_dict())
    plain.output_attentions = False
    return plain


def _meta(config: PretrainedConfig) -> nn.Module:
    """Return the plain model of a config without any storage: its modules and names."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        return _from_config(config)


def _from_config(config: PretrainedConfig, **settings: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **settings)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ModelError(f"plain transformers has no causal language model {config.model_type!r}: {error}") from error
    return model


@torch.no_grad()
def _offset_of(norm: nn.Module) -> float:
    """Return what a norm adds to its weight before it multiplies by it, measured: its outputs at weights 0 and 1."""
    weight: Tensor = norm.get_parameter("weight")
    row = torch.linspace(-1, 2, len(weight), dtype=weight.dtype, device=weight.device)[None, None]
    at_zero, at_one = (
        torch.func.functional_call(norm, {"weight": torch.full_like(weight, value)}, (row,)).double()
        for value in (0.0, 1.0)
    )
    bias = getattr(norm, "bias", None)
    without_bias = at_zero if bias is None else at_zero - bias.double()
    return float((without_bias.abs().sum() / (at_one - at_zero).abs().sum()).round())
