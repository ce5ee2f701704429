"""Writes image.json: what Pillow, diffusers and transformers make of a small picture, for runtime/src/image.

    python image.py        (Pillow 13.0.0, diffusers 0.42.1, transformers 5.23.0, torch 2.15.0; no other input)

The picture has at colour c, row y and column x the value (37x + 91y + 53c + 7xy) mod 256. Scaled pictures are written
as eight-bit values, row by row, a pixel's three colours together; pixel values colour by colour, of large ones every 997th.
"""

import json

import numpy as np
import PIL
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EVERY = 997


def picture(height: int, width: int) -> PIL.Image.Image:
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return PIL.Image.fromarray(((37 * x + 91 * y + 53 * c + 7 * x * y) % 256).astype(np.uint8))


def sizes(*pairs):
    return [{"from": list(a), "to": list(b)} for a, b in pairs]


def resized(case, resample):
    height, width = case["to"]
    return np.asarray(picture(*case["from"]).resize((width, height), resample)).flatten().tolist()


def normalised(pixels):
    """With the deviation and mean of CLIP's processor, as the pipeline calls it."""
    return CLIPImageProcessorPil(image_mean=MEAN, image_std=STD)(
        images=pixels.numpy(), do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False, return_tensors="pt").pixel_values


def thin(values):
    flat = np.asarray(values, np.float64).flatten()
    return [round(v, 7) for v in (flat if flat.size <= 1000 else flat[::EVERY])]


lanczos = sizes(((9, 14), (4, 6)), ((9, 14), (13, 20)), ((9, 14), (9, 5)), ((5, 3), (8, 3)), ((40, 7), (3, 16)), ((22, 16), (6, 8)), ((22, 16), (5, 8)))
bicubic = sizes(((9, 14), (4, 6)), ((6, 4), (7, 9)))
for case in lanczos:
    case["pixels"] = resized(case, PIL.Image.Resampling.LANCZOS)
for case in bicubic:
    case["pixels"] = resized(case, PIL.Image.Resampling.BICUBIC)

frame = VaeImageProcessor(vae_scale_factor=1).preprocess(picture(9, 14), height=4, width=6)

smooth = sizes(((45, 37), (8, 8)), ((6, 5), (8, 8)), ((9, 30), (8, 8)), ((100, 300), (224, 224)), ((576, 1024), (224, 224)))
for case in smooth:
    image = torch.from_numpy(np.asarray(picture(*case["from"]), np.float32) / 255).permute(2, 0, 1)[None]
    image = (_resize_with_antialiasing(image * 2 - 1, tuple(case["to"])) + 1) / 2
    case["pixels"] = thin(normalised(image))

cropped = sizes(((45, 37), (8, 8)), ((9, 30), (8, 8)), ((6, 6), (8, 8)))
for case in cropped:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=MEAN, image_std=STD)
    case["pixels"] = thin(processor(picture(*case["from"]), return_tensors="pt").pixel_values)

with open("image.json", "w") as f:
    json.dump({"pillow": PIL.__version__, "mean": MEAN, "std": STD, "every": EVERY, "lanczos": lanczos, "bicubic": bicubic,
               "frame": thin(frame), "smooth": smooth, "cropped": cropped}, f, separators=(",", ":"))
