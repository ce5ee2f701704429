"""A small vocabulary in CLIP's format, and the ids that transformers' tokenizer gives for a fuzzed corpus.

    python tests/golden/tokenizer.py         # writes ../fixtures/clip/{vocab.json,merges.txt} and tokenizer.json here

The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges by rank, the start and the end token.
The corpus is made by formula (`prompt`), twin of the one in `tests/tokenizer.rs`; most strings are kept as a digest of
their ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "fixtures" / "clip"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 1024

# One thing in several scripts, and the words that prompts are made of.
SNIPPET = """
a photograph of an astronaut riding a horse on the moon, highly detailed, 4k, trending on artstation
a video of a car driving through the city at night, rain, reflections, cinematic lighting, masterpiece, best quality
the quick brown fox jumps over the lazy dog; she's sure they'll say it isn't what we've seen, i'm told you'd like it
low quality, worst quality, blurry, bad anatomy, watermark, text, deformed hands, jpeg artifacts, out of frame
ein foto eines hundes, der im schnee läuft, während die sonne über den bergen aufgeht, größer und schöner
une photographie d'un château français près de la forêt à l'automne, très détaillée, où l'on voit des élèves
una fotografía de un niño en la playa mañana por la mañana, con pingüinos y corazón, año nuevo
фотография кошки, которая сидит на окне и смотрит на улицу в городе ночью, дождь и снег
φωτογραφία μιας γάτας που κάθεται στο παράθυρο και κοιτάζει τη θάλασσα το καλοκαίρι
صورة رجل يمشي في المدينة ليلا تحت المطر مع سيارة حمراء
תמונה של חתול יושב על חלון בעיר בלילה
चाँद पर घोड़े की सवारी करते हुए एक अंतरिक्ष यात्री की तस्वीर
ภาพถ่ายของแมวที่นั่งอยู่บนหน้าต่างในเมือง
月面で馬に乗る宇宙飛行士の写真、高画質、とても綺麗な街の夜景
一张宇航员在月球上骑马的照片，高质量，城市的夜晚，下雨
달 위에서 말을 타는 우주 비행사의 사진, 높은 품질의 도시 야경
một bức ảnh về người phụ nữ đi bộ trong thành phố vào ban đêm
ay üzerinde ata binen bir astronotun fotoğrafı, şehir ışıkları
0123456789 1920x1080 16:9 f/1.8 50mm iso-100 24fps 3.14 100% $20 #1 @home (word:1.3) [word] {a|b} <lora:x:0.5>
😀 🎉 ❤️ 👩‍🚀 🇯🇵 👍🏽 … — “quotes” ‘single’ ™ ½ € →
"""


def bytes_to_characters() -> list[str]:
    """The 256 printable characters that stand for bytes, in CLIP's order: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def train() -> None:
    """Learns the merges and writes the two files."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, behavior="removed", invert=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(vocab_size=8192, min_frequency=1, show_progress=False, end_of_word_suffix="</w>",
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(SNIPPET.strip().splitlines(), trainer)
    merges = [m if isinstance(m, list) else m.split(" ") for m in json.loads(bpe.to_str())["model"]["merges"]][:MERGES]
    letters = bytes_to_characters()
    tokens = list(dict.fromkeys(letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + [START, END]))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (FOLDER / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False) + "\n")
    print(f"{len(tokens)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    train()
