"""What timm's ViTs do not offer: computing only some tokens, replacing others by a mask token, and the keys of the last
block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def is_token_model(net: nn.Module) -> bool:
    """Whether `keep` and `replace` work with `net`."""
    return isinstance(net, VisionTransformer)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens [B, K, D] at `index` [B, K] of `tokens` [B, N, D]."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def forward_tokens(
    net: VisionTransformer,
    images: Tensor,
    keep: Tensor | None = None,
    replace: tuple[Tensor, Tensor] | None = None,
    after: Sequence[int] = (),
) -> tuple[Tensor, tuple[int, int], list[Tensor]]:
    """(tokens [B, P + N, D], grid (h, w), intermediate tokens) of a timm ViT, after its last norm, P prefix tokens
    first.

    Intermediate tokens are a list of [B, P + N, D], one after each number of blocks in `after`, also normalised. With
    `keep` [B, K] only the P prefix tokens and these K tokens pass through the blocks.
    """
    x = net.patch_embed(images)  # [B, N, D], or [B, h, w, D] with dynamic image sizes
    grid = (x.shape[1], x.shape[2]) if x.ndim == 4 else net.patch_embed.dynamic_feat_size(images.shape[2:])
    if replace is not None:
        mask, token = replace
        where = mask.view(*x.shape[:-1], 1)
        x = torch.where(where, token.to(x.dtype), x)
    x = net._pos_embed(x)  # the one place where timm adds position and prefix tokens
    if keep is not None:
        prefix, rest = x[:, : net.num_prefix_tokens], x[:, net.num_prefix_tokens :]
        x = torch.cat([prefix, take(rest, keep)], dim=1)
    x = net.norm_pre(net.patch_drop(x))
    if not after:
        return net.norm(net.blocks(x)), grid, []
    seen = {0: x}
    for done, block in enumerate(net.blocks, start=1):
        x = block(x)
        if done in after:
            seen[done] = x
    normed = {done: net.norm(tokens) for done, tokens in seen.items() if done in after}
    return normed[len(net.blocks)], grid, [normed[done] for done in after]


def last_keys(net: VisionTransformer, images: Tensor) -> Tensor:
    """The keys [B, D, h, w] of the last block's attention for `images`; its tokens, where it computes no keys of its
    own."""
    seen: list[Tensor] = []
    made = getattr(net.blocks[-1].attn, "qkv", None)
    hook = made and made.register_forward_hook(lambda module, inputs, out: seen.append(out))
    try:
        tokens, grid, _ = forward_tokens(net, images)
    finally:
        if hook:
            hook.remove()
    keys = seen[0].chunk(3, dim=2)[1] if seen else tokens  # [B, P + N, D], of queries, keys and values
    found: Tensor = keys[:, net.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
    return found
