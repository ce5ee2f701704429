"""Reference values for `runtime/src/measure`: PSNR and SSIM of scikit-image, the Fréchet distance of numpy and scipy.

    pip install scikit-image==0.26.0; python measure.py > measure.json
"""

import json

import numpy as np
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SHAPE = (24, 40, 3)


def picture(seed):
    i = np.arange(np.prod(SHAPE), dtype=np.int64)
    return ((i * i // 7 + i * (seed + 3) + seed * 31) % 256).astype(np.uint8).reshape(SHAPE)


def pair(seed, noise):
    a = picture(seed)
    i = np.arange(a.size, dtype=np.int64).reshape(SHAPE)
    b = np.minimum(a.astype(np.int64) + i * 13 % (noise + 1), 255).astype(np.uint8)
    ssim = structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    return {"seed": seed, "noise": noise, "psnr": peak_signal_noise_ratio(a, b, data_range=255), "ssim": float(ssim)}


def cloud(seed, size, count):
    k, i = np.arange(count)[:, None], np.arange(size)[None]
    return ((k * k * (i + 2) + k * 5 * (seed + 1) + i * i * seed) % 97) / 97


def frechet(size, a, b):
    x, y = cloud(1, size, a), cloud(2, size, b)
    cx, cy = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    # Adding a little to the diagonal keeps sqrtm from failing where the product has no full rank.
    root = sqrtm(cx @ cy + 1e-18 * np.eye(size)).real
    distance = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * root)
    return {"size": size, "a": a, "b": b, "distance": float(distance)}


print(json.dumps({
    "pairs": [pair(*case) for case in ((0, 3), (1, 20), (5, 90), (9, 250))],
    "frechet": [frechet(*case) for case in ((1, 10, 12), (4, 30, 50), (34, 200, 120))],
}, indent=1))
