"""Sites: the hook points of a TransformerLens model that carry units, and the patterns that name them."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from lens_steer.errors import SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.settings import require_settings

SitePattern = str | Sequence[str]
"""A kind (`mlp.hook_post`), a full name, a glob, a preset (`paper:lineas`), or several of these."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_NUMBERS = re.compile(r"\[(\d+)-(\d+)\]")
_LONGEST_RANGE = 1000
_ROUTED = {"mlp.hook_pre": "input", "mlp.hook_post": "output"}  # neurons, or on a mixture of experts the MLP's own ends


@dataclass(frozen=True, order=True)
class Site:
    """A hook point with a unit axis; `width` counts its units, heads flattened as head * d_head + dim.

    Two sites are equal when their names are: the rest follows from the name and the model.
    """

    name: str
    layer: int = field(compare=False)
    kind: str = field(compare=False)
    width: int = field(compare=False)
    heads: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return self.name


def split_name(name: str) -> tuple[int, str]:
    """Return the layer and kind of a hook name such as `blocks.3.mlp.hook_post`; SiteError where it has none."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise SiteError(f"{name!r} is not a hook point of a block; sites are named blocks.LAYER.KIND")
    return int(match[1]), match[2]


def find_sites(model: nn.Module, pattern: SitePattern, *, layers: Iterable[int] | None = None) -> tuple[Site, ...]:
    """Find the sites that `pattern` names, in the order in which a forward pass reaches them.

    Parameters
    ----------
    model:
        A TransformerBridge or HookedTransformer.
    pattern:
        A kind (`mlp.hook_post`: that hook of every layer), a full name (`blocks.2.attn.hook_z`), a glob
        (`attn.hook_[qk]`; `blocks.[10-12].hook_mlp_out`: layers 10 to 12), a preset, or a sequence of these. Presets
        are the sites that a paper edits, for this architecture: `paper:aura`, `paper:act`, `paper:lineas`,
        `paper:selfcond`.
    layers:
        Keep only these layers; negative numbers count from the last.

    Raises
    ------
    SiteError
        Nothing matches (the nearest kinds are named), or a named hook point never fires or has no unit axis; neurons
        are asked for where a mixture of experts has none at one point, or a preset where the architecture lacks it.

    """
    require_settings(find_sites, locals())
    host = host_of(model)
    host.refresh()
    asked = (pattern,) if isinstance(pattern, str) else tuple(pattern)
    if not asked:
        raise SiteError("no site was asked for: give a kind such as 'mlp.hook_post'")
    wanted = _layer_set(host, layers)
    sites_by_name: dict[str, Site] = {}
    for one in asked:
        for site in _match(host, one):
            if wanted is None or site.layer in wanted:
                sites_by_name.setdefault(host.canonical(site.name), site)
    if not sites_by_name:
        layers_asked = sorted(wanted or ())
        raise SiteError(f"no layer of {layers_asked} has a site {pattern!r}; the model has {host.n_layers} layers")
    return tuple(sorted(sites_by_name.values(), key=lambda site: host.firing_order(site.name)))


def _layer_set(host: Host, layers: Iterable[int] | None) -> set[int] | None:
    if layers is None:
        return None
    chosen = set()
    for layer in layers:
        if not -host.n_layers <= layer < host.n_layers:
            raise SiteError(f"layer {layer} does not exist: the model has {host.n_layers} layers")
        chosen.add(layer % host.n_layers)
    return chosen


def _match(host: Host, pattern: str) -> list[Site]:
    if pattern.startswith("paper:"):
        return [site for kind in preset_kinds(host, pattern) for site in _match(host, kind)]
    if pattern in host.hook_names:
        return [site_at(host, pattern)]
    kinds = _kinds(host)
    if pattern in kinds:
        matching = [site for name in kinds[pattern] if (site := _site_or_none(host, name)) is not None]
        return matching or [site_at(host, kinds[pattern][0])]  # which raises, saying why
    names = [name for name in host.hook_names if _BLOCK.fullmatch(name)]
    matches = site_glob(pattern).fullmatch
    hits = [name for name in names if matches(name) or matches(split_name(name)[1])]
    # Classical names (hook_resid_post) before canonical ones (hook_out): of two aliases a glob keeps the first.
    hits.sort(key=lambda name: name == host.canonical(name))
    sites = [site for site in (_site_or_none(host, name) for name in hits) if site is not None]
    if not sites:
        raise SiteError(_unknown(pattern, hits, [*kinds, *(names if pattern.startswith("blocks.") else ())]))
    return sites


def site_glob(pattern: str) -> re.Pattern[str]:
    """Return the expression of a glob over site names, in which [10-12] means the numbers 10, 11 and 12.

    Otherwise as in `fnmatch`: `*`, `?`, and sets of characters such as `[qkv]`. SiteError for a range that runs down.
    """
    choices: list[Sequence[object]] = []
    parts = _NUMBERS.split(pattern)  # text, first, last, text, first, last, ..., text
    for place in range(0, len(parts) - 1, 3):
        first, last = int(parts[place + 1]), int(parts[place + 2])
        if not first <= last < first + _LONGEST_RANGE:
            raise SiteError(f"{pattern!r}: the range [{first}-{last}] names no layers; write the lower number first")
        choices += [(parts[place],), range(first, last + 1)]
    globs = ("".join(map(str, chosen)) for chosen in itertools.product(*choices, (parts[-1],)))
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


def all_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return a site for every name, aliases included, under which a hook point of a block carries units."""
    host = host_of(model)
    host.refresh()
    names = (name for name in host.hook_names if _BLOCK.fullmatch(name))
    return tuple(site for site in (_site_or_none(host, name) for name in names) if site is not None)


def _kinds(host: Host) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for name in host.hook_names:
        if match := _BLOCK.fullmatch(name):
            kinds.setdefault(match[2], []).append(name)
    return kinds


def _unknown(pattern: str, hits: list[str], names: list[str]) -> str:
    if hits:
        return f"{pattern!r} matches {hits[0]} and {len(hits) - 1} more, but none of them carries units"
    near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3)
    return f"no site is named {pattern!r}; the nearest names here are {', '.join(near) or 'none'}"


def site_at(host: Host, name: str) -> Site:
    """Return the site of one hook name, from a probe of the model; SiteError where it fires without units."""
    layer, kind = split_name(name)
    firing = host.firing(name)
    if firing is None:
        raise SiteError(f"{name} never fires in a forward pass of this model; it may need a set_use_* switch first")
    if firing.times > 1:
        raise SiteError(f"{name} fires {firing.times} times in one forward pass: it is no single activation")
    shape = firing.shape
    if not _has_units(kind, shape, host.probe_length):
        raise SiteError(_no_units(name, shape, host.probe_length))
    if kind in _ROUTED and host.canonical(name) in _ends_of_mlp(host, layer):
        raise SiteError(
            f"{name} is another name for the {_ROUTED[kind]} of this layer's MLP, which has no single layer of neurons "
            f"(a mixture of experts): ask for hook_mlp_out, whose units are directions of the stream"
        )
    heads = shape[2] if len(shape) == 4 else 1
    return Site(name, layer, kind, heads * shape[-1], heads)


def _no_units(name: str, shape: tuple[int, ...], length: int) -> str:
    if len(shape) == 4 and shape[1] != length and shape[2] == length and name.rsplit("_", 1)[-1] in ("q", "k", "v"):
        return (
            f"{name} has shape {shape} on {length} tokens, heads before positions: it is not read here; attn.hook_z is"
        )
    return f"{name} has shape {shape} on {length} tokens: it has no unit axis"


def _ends_of_mlp(host: Host, layer: int) -> set[str]:
    """Canonical names of where a layer's MLP begins and ends."""
    names = (f"blocks.{layer}.{kind}" for kind in ("mlp.hook_in", "hook_mlp_in", "mlp.hook_out", "hook_mlp_out"))
    return {host.canonical(name) for name in names if name in host.hook_names}


def _site_or_none(host: Host, name: str) -> Site | None:
    try:
        return site_at(host, name)
    except SiteError:
        return None


def _has_units(kind: str, shape: tuple[int, ...], length: int) -> bool:
    if kind.rsplit(".", 1)[-1] in {"hook_scale", "hook_cos", "hook_sin"}:
        return False
    return len(shape) in (3, 4) and shape[1] == length


def preset_kinds(host: Host, preset: str) -> tuple[str, ...]:
    """Return the kinds of sites that a paper edits, in this model's names; SiteError where it has none of them.

    Where a norm exposes only the value before its weight and bias, `hook_normalized` stands for its output.
    """
    kinds = _kinds(host)
    gate = ("mlp.hook_pre_linear",) if "mlp.hook_pre_linear" in kinds else ()
    mlp_in = ("mlp.hook_pre", *gate)
    mlp_out = "mlp.out.hook_out" if "mlp.out.hook_out" in kinds else "hook_mlp_out"
    attn_out = "attn.o.hook_out" if "attn.o.hook_out" in kinds else "hook_attn_out"
    after = _norm_outputs(host, kinds)
    # Norms of the branches' outputs where there are any (Gemma-2, OLMo-2), else the norm in front of the MLP.
    post_norms = tuple(after[norm] for norm in ("ln1_post", "ln2_post") if norm in after)
    presets: dict[str, tuple[str, ...]] = {
        "paper:aura": (*mlp_in, mlp_out),
        "paper:act": (*after.values(), attn_out, mlp_out),
        "paper:lineas": post_norms or tuple(after[norm] for norm in ("ln2",) if norm in after),
        "paper:selfcond": ("attn.hook_q", "attn.hook_k", "attn.hook_v", attn_out, *mlp_in, mlp_out),
    }
    if preset not in presets:
        raise SiteError(f"no preset is named {preset!r}; there are {', '.join(presets)}")
    if not presets[preset]:
        raise SiteError(
            f"{preset} edits the norm in front of the MLP, and the blocks of this model have none of their own: "
            "attention and MLP run side by side behind one norm. Ask for "
            f"{after.get('ln1', 'hook_mlp_out')!r} to edit what both of them read"
        )
    return presets[preset]


def _norm_outputs(host: Host, kinds: dict[str, list[str]]) -> dict[str, str]:
    """Return norm -> the kind of its output, of the norms of a block that fire once."""
    outputs = {}
    for norm in ("ln1", "ln1_post", "ln2", "ln2_post"):
        for kind in (f"{norm}.hook_out", f"{norm}.hook_normalized"):
            # A HookedTransformer normalises the inputs of q, k and v one by one: its ln1 fires three times.
            if kind in kinds and _site_or_none(host, kinds[kind][0]) is not None:
                outputs[norm] = kind
                break
    return outputs
