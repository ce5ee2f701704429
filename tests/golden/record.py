"""Record what the PyTorch reference answers, for the parity tests.

    python tests/golden/record.py            # everything
    python tests/golden/record.py demo       # after the weights in demo/ have changed

Writes `tests/fixtures/*` (configurations), `tests/golden/<set>/<part>.safetensors` (outputs, float32) and
`tests/golden/<set>/cases.json` (how to make the inputs). See README.md beside this file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "demo" / "train"))

import networks  # noqa: E402
import short  # noqa: E402
from families import animatediff, clip_text, grafted, lavie, lavie_vsr, lora, modelscope, single_file, svd, upscaler, videocrafter  # noqa: E402
from model import masked_context  # noqa: E402
from recorder import Recorder, autoencoder, clips, image_unet, title  # noqa: E402
from sample import Cascade  # noqa: E402


# Sets of one family each: `fixture(folder)` writes the configurations, `record(recorder, checkpoint)` asks the oracle.
FAMILIES = {
    "animatediff": (partial(animatediff.fixture, adapter=False), animatediff.record),
    "animatediff-adapter": (partial(animatediff.fixture, adapter=True), animatediff.record),
    "grafted": (grafted.fixture, grafted.record),
    "x4": (partial(upscaler.fixture, video=False), upscaler.record),
    "x4-video": (partial(upscaler.fixture, video=True), upscaler.record),
    "modelscope": (modelscope.fixture, modelscope.record),
    "svd": (svd.like_published, svd.record),
    "svd-short": (svd.short, svd.record),
    "lavie": (lavie.fixture, lavie.record),
    "lavie-vsr": (lavie_vsr.fixture, lavie_vsr.record),
    "videocrafter1": (partial(videocrafter.fixture, relative=True), partial(videocrafter.record, relative=True)),
    "videocrafter2": (partial(videocrafter.fixture, relative=False), partial(videocrafter.record, relative=False)),
    "ldm1": (partial(single_file.fixture, second=False), partial(single_file.record, second=False)),
    "ldm2": (partial(single_file.fixture, second=True), partial(single_file.record, second=True)),
    "lora": (lora.fixture, lora.record),
}


def video_unet(r: Recorder, part: str, graft, sizes, regimes: int) -> None:
    """Key frames and interpolation: masks with nothing, one and two frames given, odd timesteps, tokens of their own for time."""
    c, d = graft.spatial.config.in_channels, graft.spatial.config.cross_attention_dim
    masks = lambda t: [[0.0] * t, [1.0] + [0.0] * (t - 1), [1.0] * min(2, t) + [0.0] * max(0, t - 2), [1.0] + [0.0] * (t - 2) + [1.0] * (t > 1)]
    for i, (t, b, size) in enumerate(clips(*sizes)):

        def oracle(r, i=i, t=t, b=b, size=size):
            x = r.filled("sample", b, t, c, *size)
            step = r.listed("timestep", [(37.0, 999.0, 501.0, 3.0)[(i + j) % 4] for j in range(b)], "f32")
            tokens, temporal = r.filled("encoder_hidden_states", b, 2 + i % 2, d), r.filled("temporal_encoder_hidden_states", b, 2 + (i + 1) % 2, d)
            context = r.filled("context_latents", b, t, c, *size)
            mask = r.listed("context_mask", [masks(t)[(i + j) % 4] for j in range(b)], "f32")
            regime = r.listed("regime", [(i + j) % regimes for j in range(b)], "i64") if regimes else None
            call = lambda u: u(x.flatten(0, 1), step.repeat_interleave(t), tokens.repeat_interleave(t, 0)).sample
            return {"out_sample": graft.run(call, t, masked_context(context, mask > 0), regime, temporal).view_as(x)}

        r.record(part, title(t, b, size), oracle)


def upsampler(r: Recorder, graft, sizes) -> None:
    unet = graft.spatial
    width = unet.config.cross_attention_dim

    def oracle(r, t, b, size):
        n, clip = b * (t or 1), (t,) if t else ()
        x, low = r.filled("sample", b, *clip, 48, *size), r.filled("low_res", b, *clip, 3, *size)
        step, level = r.listed("timestep", [749.0, 37.0][:b], "f32"), r.listed("noise_level", [20, 349][:b], "i64")
        both = torch.cat([x.reshape(n, 48, *size), low.reshape(n, 3, *size)], 1)
        each = lambda v: v.repeat_interleave(t or 1)
        call = lambda u: u(both, each(step), torch.zeros(n, 1, width), class_labels=each(level)).sample
        return {"out_sample": (graft.run(call, t) if t else call(unet)).view_as(x)}

    for t, b, size in clips(*sizes):
        r.record("upsampler", title(t, b, size), lambda r, t=t, b=b, size=size: oracle(r, t, b, size))
    for b, size in ((1, sizes[0]), (2, sizes[1])):
        r.record("image_upsampler", title(None, b, size), lambda r, b=b, size=size: oracle(r, None, b, size))


def cascade(name: str, checkpoint: Path, latent, decoded, raised) -> None:
    """Every part of a `videoldm` checkpoint; sizes are (small, large) pairs of height and width on each part's own grid."""
    r, model = Recorder(name), Cascade(checkpoint)
    labels = [[0, 2], [-1, -1], [1, -1], [1, 3]]
    for b in (1, 2, 4):

        def tokens(r, b=b):
            chosen = r.listed("labels", labels[:b], "i64")
            return {"encoder_hidden_states": model.conditions(chosen[:, 0], chosen[:, 1])}

        r.record("conditions", f"b{b}", tokens)
    image_unet(r, "image", model.keyframe_model.spatial, latent)
    video_unet(r, "keyframes", model.keyframe_model, latent, 0)
    video_unet(r, "interpolate", model.interpolation_model, latent, 2)
    autoencoder(r, model.vae, model.decoder, decoded)
    upsampler(r, model.upsampler, raised)
    r.write()


def stable_diffusion(name: str, checkpoint: Path) -> None:
    r = Recorder(name)
    image_unet(r, "image", UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval(), ((6, 10), (8, 12)))
    autoencoder(r, AutoencoderKL.from_pretrained(checkpoint / "vae").eval(), None, ((3, 5), (4, 6)))
    clip_text.record(r, clip_text.load(checkpoint / "text_encoder"))
    r.write()


def main() -> None:
    torch.set_num_threads(1)
    wanted, fixtures = sys.argv[1:] or ["demo", "tiny", "sd1", "sd2", *FAMILIES], ROOT / "tests" / "fixtures"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if "demo" in wanted:
            cascade("demo", ROOT / "demo", ((6, 10), (8, 12)), ((2, 3), (3, 4)), ((3, 5), (4, 4)))
        if "tiny" in wanted:
            networks.tiny_cascade(fixtures / "tiny")
            checkpoint = networks.materialise(fixtures / "tiny", scratch / "tiny")
            cascade("tiny", checkpoint, ((3, 5), (4, 6)), ((3, 3), (2, 4)), ((3, 3), (2, 4)))
            short.record(checkpoint, HERE / "tiny")
        for name, second in (("sd1", False), ("sd2", True)):
            if name in wanted:
                networks.stable_diffusion(fixtures / name, second)
                stable_diffusion(name, networks.materialise(fixtures / name, scratch / name))
        for name, (fixture, record) in FAMILIES.items():
            if name in wanted:
                shutil.rmtree(fixtures / name, ignore_errors=True)
                fixture(fixtures / name)
                recorder = Recorder(name)
                record(recorder, networks.materialise(fixtures / name, scratch / name))
                recorder.write()


if __name__ == "__main__":
    main()
