"""The encoder contract: tokens kept and replaced, patches where they belong, levels."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import NARROW, tiny_encoder
from torch import Tensor

from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import create
from selfsight.errors import SelfsightError

VIT = "vit_tiny_patch16_224"


def vit(**args: object) -> Encoder:
    return tiny_encoder(name=VIT, **args).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32)


@pytest.mark.parametrize(
    "args", [{}, {"global_pool": "avg", "class_token": False}, {"pre_norm": True, "reg_tokens": 2}]
)
def test_a_vit_is_timms_own_forward(args: dict):
    encoder, x = vit(**args), images()
    got = encoder(x)
    assert torch.allclose(got.pooled, encoder.net(x), atol=1e-6)
    tokens = encoder.net.forward_features(x)
    assert torch.allclose(got.patches, tokens[:, encoder.net.num_prefix_tokens :], atol=1e-6)
    assert got.grid == (4, 4) and got.patches.shape[1] == 16
    assert (encoder.dim, encoder.patch_dim) == (32, 32)


@pytest.mark.parametrize(
    "args", [{}, {"global_pool": "avg", "class_token": False}, {"pre_norm": True, "reg_tokens": 2}]
)
def test_keep_of_all_tokens_is_the_full_forward(args: dict):
    encoder, x = vit(**args), images()
    kept, full = encoder(x, keep=torch.arange(16).expand(2, -1)), encoder(x)
    assert torch.allclose(kept.patches, full.patches, atol=1e-6) and torch.allclose(kept.pooled, full.pooled, atol=1e-6)


def test_keep_takes_the_right_tokens_with_their_positions():
    # Without blocks nothing mixes tokens: the kept ones must be the same rows of the full forward.
    encoder, x = vit(depth=0), images()
    keep = torch.tensor([[0, 3, 9], [2, 5, 15]])
    got = encoder(x, keep=keep).patches
    full = encoder(x).patches
    for b in range(2):
        assert torch.allclose(got[b], full[b, keep[b]], atol=1e-6)


def test_with_blocks_the_other_tokens_are_not_seen():
    encoder, x = vit(), images()
    keep = torch.tensor([[0, 3, 9], [0, 3, 9]])
    changed = x.clone()
    changed[:, :, 8:16, 0:8] += 5.0  # token 4, not kept
    assert torch.equal(encoder(x, keep=keep).pooled, encoder(changed, keep=keep).pooled)
    assert not torch.allclose(encoder(x).pooled, encoder(changed).pooled, atol=1e-3)
    seen: list[int] = []
    hook = encoder.net.blocks[0].register_forward_hook(lambda m, i, o: seen.append(i[0].shape[1]))
    encoder(x, keep=keep)
    hook.remove()
    assert seen == [4]  # one class token and three kept: only these were computed


def test_replace_puts_the_token_before_the_position():
    encoder, x = vit(depth=0), images()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = mask[1, 0] = True
    token = torch.randn(32)
    got, full = encoder(x, replace=(mask, token)).patches, encoder(x).patches
    assert torch.allclose(got[~mask], full[~mask], atol=1e-6)
    position = encoder.net.pos_embed[0, 1:]  # after the class token's
    assert torch.allclose(got[0, 5], encoder.net.norm(token + position[5]), atol=1e-5)
    assert torch.allclose(got[1, 0], encoder.net.norm(token + position[0]), atol=1e-5)


def test_masked_pixels_have_no_effect_and_the_token_gets_a_gradient():
    encoder, x = vit(), images()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 6] = True
    token = torch.zeros(32, requires_grad=True)
    changed = x.clone()
    changed[:, :, 8:16, 16:24] = 100.0  # token 6 is in row 1, column 2 of the 4 x 4 grid
    one, two = encoder(x, replace=(mask, token)), encoder(changed, replace=(mask, token))
    assert torch.equal(one.pooled, two.pooled) and torch.equal(one.patches, two.patches)
    one.pooled.square().sum().backward()
    assert token.grad is not None and token.grad.abs().max() > 1e-6


def test_patches_of_a_vit_are_in_reading_order():
    encoder, x = vit(depth=0), images(1)
    base = encoder(x).patches
    for row, column in [(0, 3), (2, 1), (3, 0)]:
        changed = x.clone()
        changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3.0
        difference = (encoder(changed).patches - base).abs().amax((0, 2))
        assert (difference > 1e-3).nonzero().flatten().tolist() == [4 * row + column]


def test_patches_of_a_cnn_are_its_last_map_in_reading_order():
    encoder = tiny_encoder().eval()
    x = torch.randn(2, 3, 64, 96)
    got, final = encoder(x), encoder.net.forward_features(x)
    assert got.grid == tuple(final.shape[2:]) == (4, 6)
    for row in range(4):
        for column in range(6):
            assert torch.equal(got.patches[:, 6 * row + column], final[:, :, row, column])
    assert torch.allclose(got.pooled, final.mean((2, 3)), atol=1e-6)
    assert torch.allclose(got.pooled, encoder.net(x), atol=1e-6)


def test_patches_of_a_channels_last_transformer():
    args = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    geometry = Geometry(3, 64, (0.0, 255.0), (0.5,) * 3, (0.5,) * 3)
    encoder = create("swin_tiny_patch4_window7_224", geometry, args).eval()
    x = torch.randn(1, 3, 64, 64)
    got, final = encoder(x), encoder.net.forward_features(x)  # [B, h, w, D]
    assert got.grid == tuple(final.shape[1:3])
    assert torch.equal(got.patches[0, got.grid[1] + 1], final[0, 1, 1])
    assert torch.allclose(got.pooled, encoder.net(x), atol=1e-6)


def test_levels_of_a_cnn_are_its_stages_finest_first():
    encoder = tiny_encoder().eval()
    assert encoder.level_strides == (2, 4, 8, 16)  # known before the first image, which the hooks are to see
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda m, i, o: seen.append(o))
        for layer in (encoder.net.layer1, encoder.net.layer3)
    ]
    x = images()
    got = encoder(x, levels=True)
    for hook in hooks:
        hook.remove()
    assert got.levels is not None
    sides = [level.shape[-1] for level in got.levels]
    assert sides == sorted(sides, reverse=True) and sides[0] > sides[-1]
    assert any(torch.equal(level, seen[0]) for level in got.levels)
    assert torch.equal(got.levels[-1], seen[1])
    assert torch.equal(got.pooled, encoder(x).pooled) and encoder(x).levels is None


@pytest.mark.parametrize("args", [{"depth": 8}, {"depth": 5, "reg_tokens": 2}, {"depth": 2}])
def test_levels_of_a_vit_are_after_quarters_of_its_blocks(args: dict):
    encoder, x = vit(**args), images()
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, i, o: seen.append(o)) for block in encoder.net.blocks]
    got = encoder(x, levels=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == args["depth"]  # each block once
    assert encoder.level_strides == (8,) * 4 and encoder.level_channels == (32,) * 4
    after = {8: [2, 4, 6, 8], 5: [2, 3, 4, 5], 2: [1, 1, 2, 2]}[args["depth"]]
    assert got.levels is not None and len(got.levels) == 4
    for level, blocks in zip(got.levels, after, strict=True):
        tokens = encoder.net.norm(seen[blocks - 1])[:, encoder.net.num_prefix_tokens :]
        assert torch.equal(level.flatten(2).transpose(1, 2), tokens)
    assert torch.equal(got.levels[-1].flatten(2).transpose(1, 2), got.patches)
    assert torch.equal(got.pooled, encoder(x).pooled)
    timms = encoder.net.forward_intermediates(x, indices=[n - 1 for n in sorted(set(after))], norm=True)[1]
    for level, blocks in zip(got.levels, after, strict=True):
        assert torch.allclose(level, timms[sorted(set(after)).index(blocks)], atol=1e-5)


SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
LEVELS = [  # name, arguments, size; which of timm's maps; their strides and channels
    ("resnet18", {}, 64, [0, 1, 2, 3, 4], (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)),
    ("resnet18", NARROW, 32, [0, 1, 2, 4], (2, 4, 8, 16), (64, 8, 16, 32)),  # its last stage has no block
    ("resnet18", NARROW, 28, [0, 1, 2, 4], (2, 4, 8, 16), (64, 8, 16, 32)),  # not a multiple of the strides
    ("convnext_atto", {}, 64, [0, 1, 2, 3], (4, 8, 16, 32), (40, 80, 160, 320)),
    ("swin_tiny_patch4_window7_224", SWIN, 64, [0, 1], (4, 8), (16, 32)),
    ("mixer_s32_224", {}, 64, [1, 3, 5, 7], (32,) * 4, (512,) * 4),
]


@pytest.mark.parametrize(("name", "args", "size", "which", "strides", "channels"), LEVELS)
def test_levels_are_the_deepest_maps_of_each_stride(
    name: str, args: dict, size: int, which: list[int], strides: tuple, channels: tuple
):
    encoder = create(name, Geometry(3, size, (0.0, 255.0), (0.5,) * 3, (0.5,) * 3), args).train()
    assert encoder.level_strides == strides and encoder.level_channels == channels
    assert all(part.training for part in encoder.modules())  # though an image was tried
    encoder.eval()
    x = torch.randn(2, 3, size, size)
    got = encoder(x, levels=True)
    maps = encoder.net.forward_intermediates(x, norm=True, intermediates_only=True)
    assert got.levels is not None and len(got.levels) == len(which)
    for level, index, stride in zip(got.levels, which, strides, strict=True):
        assert torch.equal(level, maps[index]) and level.shape[-1] == -(-size // stride)
    assert torch.allclose(got.levels[-1].flatten(2).transpose(1, 2), got.patches, atol=1e-6)
    assert torch.equal(got.pooled, encoder(x).pooled)


def test_levels_are_of_all_tokens():
    with pytest.raises(SelfsightError, match="keep leaves some out"):
        vit()(images(), levels=True, keep=torch.zeros(2, 1, dtype=torch.long))


@pytest.mark.parametrize("fails", [False, True])
def test_encoding_leaves_the_encoder_as_it_was(fails: bool):
    encoder = tiny_encoder().train().to(memory_format=torch.channels_last)
    encoder.net.bn1.eval()  # as training does where old weights keep their statistics
    before = {name: (value.clone(), value.stride()) for name, value in encoder.state_dict().items()}
    modes = [part.training for part in encoder.modules()]
    x = torch.randn(2, 3 + fails, 32, 32)
    if fails:
        with pytest.raises(RuntimeError):
            encoder.encode(x)
    else:
        got = encoder.encode(x)
        assert not got.pooled.requires_grad
        with torch.no_grad():
            assert torch.allclose(got.pooled, copy.deepcopy(encoder).eval()(x).pooled, rtol=1e-5, atol=1e-6)
    assert [part.training for part in encoder.modules()] == modes
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1]


def test_a_cnn_has_no_tokens_and_says_so():
    encoder = tiny_encoder()
    for more in (
        {"keep": torch.zeros(2, 1, dtype=torch.long)},
        {"replace": (torch.zeros(2, 4).bool(), torch.zeros(32))},
    ):
        with pytest.raises(SelfsightError, match="ResNet has no tokens"):
            encoder(images(), **more)


def test_the_digest_is_of_weights_and_preprocessing():
    from dataclasses import replace

    one, two = tiny_encoder(seed=0), tiny_encoder(seed=0)
    assert one.digest == two.digest != tiny_encoder(seed=1).digest
    two.geometry = replace(two.geometry, size=48)
    assert one.digest != two.digest
    three = tiny_encoder(seed=0)
    three.net.bn1.running_mean[0] += 1e-7
    assert one.digest != three.digest
