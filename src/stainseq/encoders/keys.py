"""Other people's names for the parameters of a vision transformer, turned into timm's.

Known: timm; Hugging Face's ViT, DINOv2 (with and without registers, plain and gated) and CLIP, in the form
on the hub and in that of transformers 5; the original DINOv2; open_clip, with its own towers and with timm's
inside. What belongs to a text tower, a pooler that is not used or a classifier is left out by name; every
other key stays and must find its place, else the file is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_UNUSED = re.compile(r"^(?:(?:embeddings\.)?mask_token|vision_model\.embeddings\.position_ids|pooler\..*)$")

_TEXT = re.compile(
    r"^(?:text_model\..*|text\..*|text_projection(?:\.weight)?|logit_scale|logit_bias|token_embedding\.weight"
    r"|ln_final\..*|transformer\.resblocks\..*|positional_embedding|attn_mask)$"
)
"""The other tower of an image-text model; left out only where an image tower is named beside it."""

_WRAPPERS = ("module.", "backbone.", "vit.", "dinov2.", "dinov2_with_registers.", "visual.", "trunk.")

_WHOLE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^(?:vision_model\.embeddings\.)?class_embedding$", "cls_token"),
        (r"^(?:embeddings\.)?register_tokens$", "reg_token"),
        (r"^(?:embeddings\.position_embeddings|positional_embedding)$", "pos_embed"),
        (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:vision_model\.embeddings\.patch_embedding|conv1)\.", "patch_embed.proj."),
        (r"^(?:vision_model\.pre_layrnorm|ln_pre)\.", "norm_pre."),
        (r"^(?:layernorm|vision_model\.post_layernorm|ln_post)\.", "norm."),
        (r"^visual_projection\.weight$", "head.weight"),
        (r"^head\.proj\.weight$", "head.weight"),
        (r"^(?:vision_model\.)?(?:encoder\.layers?|layers|transformer\.resblocks)\.(\d+)\.", r"blocks.\1."),
    )
)

_BLOCK: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(r"^(blocks\.\d+\.)" + pattern), r"\1" + new)
    for pattern, new in (
        (r"(?:attention\.attention\.query|attention\.q_proj|self_attn\.q_proj)\.", "attn.q."),
        (r"(?:attention\.attention\.key|attention\.k_proj|self_attn\.k_proj)\.", "attn.k."),
        (r"(?:attention\.attention\.value|attention\.v_proj|self_attn\.v_proj)\.", "attn.v."),
        (r"(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj|attn\.out_proj)\.", "attn.proj."),
        (r"attn\.in_proj_(weight|bias)$", r"attn.qkv.\2"),
        (r"(?:layernorm_before|layer_norm1|ln_1)\.", "norm1."),
        (r"(?:layernorm_after|layer_norm2|ln_2)\.", "norm2."),
        (r"layer_scale([12])\.lambda1$", r"ls\2.gamma"),
        (r"(?:intermediate\.dense|mlp\.c_fc|mlp\.weights_in|mlp\.w12)\.", "mlp.fc1."),
        (r"(?:output\.dense|mlp\.c_proj|mlp\.weights_out|mlp\.w3|mlp\.down_proj)\.", "mlp.fc2."),
    )
)

_MERGED = (("attn.qkv", ("attn.q", "attn.k", "attn.v")), ("mlp.fc1", ("mlp.gate_proj", "mlp.up_proj")),
           ("mlp.fc1", ("mlp.fc1_g", "mlp.fc1_x")))  # fmt: skip


def _one(key: str) -> str:
    for table in (_WHOLE, _BLOCK):
        for pattern, new in table:
            renamed, count = pattern.subn(new, key)
            if count:
                key = renamed
                break
    return key


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Image tower alone, without the prefixes of the modules that held it."""
    if any(k.startswith(("visual.", "vision_model.")) for k in state):
        state = {k: v for k, v in state.items() if not _TEXT.match(k)}
    for wrapper in _WRAPPERS:
        state = {k.removeprefix(wrapper): v for k, v in state.items()}
    return state


def to_timm(state: dict[str, Tensor], *, no_embed_prefix: bool = False, keep_head: bool = False) -> dict[str, Tensor]:
    """State dict with timm's names.

    Parameters
    ----------
    state
        Tensors by anyone's names; not changed.
    no_embed_prefix
        The network adds no position embedding to class and register tokens. The class token's, which
        Hugging Face and the original DINOv2 store, is then added to the class token itself, which is the same.
    keep_head
        The network has a projection; else `head.weight` and `head.bias` are a classifier's and left out.
    """
    import torch

    out: dict[str, Tensor] = {}
    for key, value in _unwrap(state).items():
        if not _UNUSED.match(key):
            out[_one(key)] = value
    if not keep_head:
        out = {k: v for k, v in out.items() if k not in ("head.weight", "head.bias")}
    elif "proj" in out:
        out["head.weight"] = out.pop("proj").t()
    for whole, parts in _MERGED:
        firsts = [k for k in out if f".{parts[0]}." in k]
        for first in firsts:
            names = [first.replace(parts[0], p) for p in parts]
            if all(n in out for n in names):
                out[first.replace(parts[0], whole)] = torch.cat([out.pop(n) for n in names])
    return _shapes(out, no_embed_prefix=no_embed_prefix)


def _shapes(out: dict[str, Tensor], *, no_embed_prefix: bool) -> dict[str, Tensor]:
    import torch

    if "cls_token" in out:
        out["cls_token"] = out["cls_token"].reshape(1, 1, -1)
    positions = out.get("pos_embed")
    if positions is None:
        return out
    positions = out["pos_embed"] = positions.reshape(1, *positions.shape[-2:])
    side = round((positions.shape[1] - 1) ** 0.5)
    if no_embed_prefix and positions.shape[1] == side * side + 1 and "cls_token" in out:
        out["cls_token"] = (out["cls_token"].float() + positions[:, :1].float()).to(torch.float32)
        out["pos_embed"] = positions[:, 1:]
    return out
