"""Features without any network: how much of each patch word an image holds, the control of single-layer learning.

Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011, section 3:
6 x 6 patches, each normalised in brightness and contrast; ZCA whitening; K-means; for each place of an image the
"triangle" activation max(0, mean distance - distance) of each centroid; sums over the four quadrants; standardised.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, WORDS, SAMPLE = 6, 800, 100_000  # pixels; centroids; patches they are learnt from
CONTRAST, ZCA = 10.0, 0.1  # added to the variance of a patch (pixels from 0 to 255), and of a direction


def kmeans_features(train: np.ndarray, test: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 4 * WORDS] of images [N, S, S, C] uint8, the words and the standardisation learnt from `train`."""
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    chosen = train[np.sort(rng.choice(len(train), min(len(train), 10_000), replace=False))]
    patches = np.concatenate([_some(image, max(1, SAMPLE // len(chosen)), rng) for image in chosen])
    x = normalised(torch.from_numpy(patches))
    mean = x.mean(0)
    values, directions = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    zca = directions / (values.clamp(min=0.0) + ZCA).sqrt() @ directions.T
    means = MiniBatchKMeans(WORDS, batch_size=4096, n_init=1, max_iter=30, random_state=seed)
    words = torch.from_numpy(means.fit(((x - mean) @ zca).numpy()).cluster_centers_).float()
    sides = [_pooled(images, mean, zca, words) for images in (train, test)]
    centre, scale = sides[0].mean(0), sides[0].std(0) + 1e-6
    return (sides[0] - centre) / scale, (sides[1] - centre) / scale


def _some(image: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, P] random patches of an image, channels first as `F.unfold` gives them."""
    tops = rng.integers(0, image.shape[0] - PATCH + 1, (count, 2)).tolist()
    cut = [image[y : y + PATCH, x : x + PATCH].transpose(2, 0, 1).reshape(-1) for y, x in tops]
    return np.stack(cut).astype(np.float32)


def normalised(patches: Tensor) -> Tensor:
    """`patches` [N, P] of pixels from 0 to 255, less their mean, over their standard deviation."""
    patches = patches - patches.mean(1, keepdim=True)
    return patches / (patches.square().mean(1, keepdim=True) + CONTRAST).sqrt()


def triangle(patches: Tensor, words: Tensor) -> Tensor:
    """[N, K] how much nearer than the mean distance each of the `words` [K, P] is to each of `patches` [N, P]."""
    distance = torch.cdist(patches, words)
    return (distance.mean(1, keepdim=True) - distance).clamp_(min=0.0)


@torch.inference_mode()
def _pooled(images: np.ndarray, mean: Tensor, zca: Tensor, words: Tensor) -> np.ndarray:
    """Sums of activations over the quadrants [N, 4 * WORDS] of `images` [N, S, S, C]."""
    out = []
    for start in range(0, len(images), 16):
        pixels = torch.from_numpy(images[start : start + 16].astype(np.float32)).permute(0, 3, 1, 2)
        cut = F.unfold(pixels, PATCH).transpose(1, 2)  # [B, L, P]
        whitened = (normalised(cut.flatten(0, 1)) - mean) @ zca
        side = pixels.shape[-1] - PATCH + 1
        activation = triangle(whitened, words).view(len(pixels), side, side, -1)
        half = side // 2
        quadrants = [activation[:, y, x].sum((1, 2)) for y in (slice(half), slice(half, None))
                     for x in (slice(half), slice(half, None))]  # fmt: skip
        out.append(torch.cat(quadrants, 1))
    return torch.cat(out).numpy()
