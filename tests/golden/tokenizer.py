"""A small vocabulary in CLIP's format, and the ids that transformers' tokenizer gives for a fuzzed corpus.

    python tests/golden/tokenizer.py         # writes tokenizer.json here
    python tests/golden/tokenizer.py train   # also ../fixtures/clip/{vocab.json,merges.txt}; then record.py anew

The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges by rank, the start and the end token.
The corpus is made by formula (`prompt`), twin of the one in `tests/tokenizer.rs`; most strings are kept as a digest of
their ids.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "fixtures" / "clip"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES, MASK = 1024, (1 << 64) - 1

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


# Pieces of the corpus, and ranges of code points from which single characters are drawn.
FRAGMENTS = """
a an the of photograph astronaut horse Moon HIGHLY detailed 4k cinematic lighting masterpiece it's It'S they'll we've I'm you'd isn't
don't 'tis rock'n'roll 's 're 'd 'LL don’t x2 24fps 1920x1080 3.14 100% $20 #1 @home <|startoftext|> <|endoftext|> <|ENDOFTEXT|>
<|StartOfText|> <|endoftext <|end|> ! !! !!! ? ?! ... ( ) (word:1.3) [word] {a|b} <lora:x:0.5> \\ / - -- _ __ = == ~ ^ ` " '' a_b a-b CamelCase
über Größe ẞ ß ﬁ ﬂ ſ château élèves naïve ñandú İstanbul ışık ŞEHİR ØRSTED Ångström Åse été Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍ A̴̵̜̰͔ͫ͗͢L ΣΊΣΥΦΟΣ ΟΔΟΣ ᾳ ᾼ Привет МИР ёлка Ёж
город صورة المدينة ٣٤٥ شَدَّة لا תמונה שָׁלוֹם चाँद घोड़े क्षत्रिय १२३ ภาพถ่าย เมือง ๑๒ 月面 宇宙飛行士 がぎ が ﾊﾟﾋﾟ ＡＢＣ １２３ 城市的夜晚 高质量 𠮷野家 달 우주 비행사 한
thành phố người ⅷ Ⅷ ² ½ ① 𝔘𝔫𝔦 𝟘𝟙 ℵ Ω K Å ǅ 😀 🎉 ❤️ ❤ 👩\u200d🚀 👨\u200d👩\u200d👧\u200d👦 🇯🇵 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 👍🏽 #️⃣ … — “quotes” ‘single’ ™ € → \u200b \u200d \ufeff \u00ad \u0000 \u0007 \u001b[0m
� \ue000 \U000e0001 \u202e \u2066 ͅ ᴬ Ɪ 𞤀 𐐀 𑢠 🇦
""".split() + ["\n", "\t", "  ", "\u00a0", "\u3000", "\u2028", "\u0085", "\u001c", "\u180e", " a ", " , "]
RANGES = [
    (0x00, 0x1F), (0x20, 0x7E), (0x20, 0x7E), (0x7F, 0x9F), (0xA0, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F),
    (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x900, 0x97F), (0x980, 0xDFF), (0xE00, 0xE7F), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x13A0, 0x13FD), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x27BF), (0x2C00, 0x2DFF), (0x3000, 0x30FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA640, 0xA7FF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F),
    (0xFF00, 0xFFEF), (0x10000, 0x10FFF), (0x11000, 0x11FFF), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0000, 0xE01EF),
]
COUNT = 4000


class Draws:
    """Splitmix64 from a seed."""

    def __init__(self, seed: int):
        self.state = seed

    def below(self, n: int) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def prompt(k: int) -> str:
    """String `k` of the corpus: up to 16 fragments, characters and runs, with or without spaces between."""
    d, out = Draws(k), []
    spaced = d.below(2) == 1
    for _ in range(d.below(16)):
        kind = d.below(8)
        if kind < 4:
            out.append(FRAGMENTS[d.below(len(FRAGMENTS))])
        elif kind < 7:
            low, high = RANGES[d.below(len(RANGES))]
            out.append(chr(low + d.below(high - low + 1)))
        else:
            out.append(FRAGMENTS[d.below(len(FRAGMENTS))] * (1 + d.below(40)))
    return (" " if spaced else "").join(out)


def digest(ids: list[int]) -> str:
    """FNV-1a, 32 bits, over the ids as little-endian `u32`."""
    h = 0x811C9DC5
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{h:08x}"


def record() -> None:
    """Asks transformers, with the tokenizer files of `sd1` and of `sd2` (which pads with "!" and so finds it in texts)."""
    said = {}
    for name in ("sd1", "sd2"):
        with tempfile.TemporaryDirectory() as folder:
            for file in [*(FOLDER.parent / name / "tokenizer").iterdir(), *FOLDER.iterdir()]:
                shutil.copy(file, folder)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        said[name] = lambda text, t=tokenizer: t(text, add_special_tokens=False).input_ids
    listed = ["", " ", "a photograph of an astronaut riding a horse", "x" * 3000, "wow!!!! <|ENDOFTEXT|> hi <|endoftext|>", *FRAGMENTS]
    golden = {
        "fragments": FRAGMENTS, "ranges": RANGES,
        "listed": [{"text": text, **{name: ask(text) for name, ask in said.items()}} for text in listed],
        "digests": {name: "".join(digest(ask(prompt(k))) for k in range(COUNT)) for name, ask in said.items()},
    }
    (HERE / "tokenizer.json").write_text(json.dumps(golden, ensure_ascii=True) + "\n")
    print(f"{COUNT} prompts, {sum(len(prompt(k)) for k in range(COUNT))} characters, {(HERE / 'tokenizer.json').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    if "train" in sys.argv:
        train()
    record()
