#!/usr/bin/env python3
"""Makes the tokenizers and expected.jsonl of this directory with the Hugging Face library, the independent
implementation that chr-tokenize is compared with (they were made with tokenizers 0.23.3):

    python3 -m venv venv && venv/bin/pip install tokenizers && venv/bin/python tests/data/tok/make.py

The tokenizers are tiny, trained on datasets/pretrain.jsonl and the lines below; their pre-tokenizers are those of GPT-2,
Qwen, Llama 3 and DeepSeek type files, and some that exercise the rest; those of characters are of the kinds that
SentencePiece models are published as (Llama 2, Mistral, Gemma, T5)."""
import json
import os
import random

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        trainers)

here = os.path.dirname(os.path.abspath(__file__))
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
LINES = [
    "It's what they'll say: we've 3 of 1,234,567 left, don't you?  I'm SURE THEY'RE RIGHT, SHE'D say.",
    "\tif (x == 0) {\n\t\treturn y[i++] * 0x1f;\n\t}\n\n\n\treturn -1;   \n",
    "今天天气很好，我们去公园散步吧。2024年3月15日。",
    "カタカナとひらがな、漢字。전문가 모델을 디스크에서 읽는다.",
    "Привет, мир! Как дела? Γειά σου Κόσμε. Zażółć gęślą jaźń — naïve café, Übergröße.",
    "👍🏽 ok 🎉🎉 👩‍👩‍👧 flags 🇩🇪🇯🇵 ❤️",
    "مرحبا بالعالم ١٢٣ שלום עולם हिन्दी में लिखा है",
    "a  b   c    d\n\ne \n f\r\ng\u00a0h\u3000i\u2028j\x85k\x0bl\x0cm",
    "½ ² Ⅷ ①②③ 1st 2nd ４５６ x²+y²=z² 𝟘𝟙",
    "<|endoftext|>a<think> b </think>\n<|im_start|>user\nhi<|im_end|>",
    "'s 'S 'ſ it'ſ ''t'' 'LLama don''t",
    "", " ", "\n", "   ", "\x00\x01\x7f", "a", "\u0301", "e\u0323\u0301x",
    "supercalifragilisticexpialidocious" * 3, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "========================",
]


def soup(seed, n):
    """Random text of characters that the patterns tell apart."""
    rng = random.Random(seed)
    classes = ["abcdeXYZ", "strevmld", "'", "'", "0123456789", "٣५７Ⅷ½", "    ", "  \t\n\r", "\n", "\u00a0\u3000\u2028\x85",
               ".,;:!?-_/\\()[]{}\"", "éüßñøЖжΩλ", "中文字漢語", "ひらカナ", "가나다", "😀🎉👍🏽", "\u0301\u0308\u200d\ufe0f", "\u017fK",
               "\x00\x07\x1b\x7f", "ʰǅªº", "𝔘𐍈", "<|think>"]
    return "".join(rng.choice(rng.choice(classes)) for _ in range(n))


def train(pre, vocab, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    text = [json.loads(line)["text"] for line in open(os.path.join(here, "../../../datasets/pretrain.jsonl"))][:100]
    t.train_from_iterator(text + LINES * 3, trainers.BpeTrainer(vocab_size=vocab, show_progress=False,
                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]))
    return t


def split(regex, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(regex), behavior, invert)


def byte_level(space=False, regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex)


def save(t, name, old_merges=False):
    o = json.loads(t.to_str())
    if old_merges:      # files before 2024
        o["model"]["merges"] = [" ".join(m) for m in o["model"]["merges"]]
    with open(os.path.join(here, name), "w") as f:
        json.dump(o, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    return Tokenizer.from_file(os.path.join(here, name))


def gpt2():
    return save(train(byte_level(regex=True), 420), "gpt2.json", old_merges=True)


def qwen():
    t = train(pre_tokenizers.Sequence([split(QWEN), byte_level()]), 400)
    t.normalizer = normalizers.NFC()
    t.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken(s, normalized=False) for s in ("<think>", "</think>")])
    return save(t, "qwen.json")


def llama3():
    t = train(pre_tokenizers.Sequence([split(LLAMA), byte_level()]), 400)
    o = json.loads(t.to_str())
    o["model"]["ignore_merges"] = True
    o["model"]["vocab"]["supercalifragilisticexpialidocious"] = max(o["model"]["vocab"].values()) + 1
    return save(Tokenizer.from_str(json.dumps(o)), "llama3.json")


def deepseek():
    t = train(pre_tokenizers.Sequence([
        split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), pre_tokenizers.Digits(individual_digits=True),
        split(r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        byte_level()]), 380)
    t.add_tokens([AddedToken("<think>", normalized=True), AddedToken("<|im_start|>", lstrip=True, rstrip=True),
                  AddedToken("say", single_word=True), AddedToken("sa"), AddedToken("<th", rstrip=True)])
    return save(t, "deepseek.json")


def behaviors():
    t = train(pre_tokenizers.Sequence([
        split(r"\s+", "merged_with_next"), split(r"[,.]", "merged_with_previous"), split(r"[aeiou]", "contiguous"),
        split(r"\x00", "removed"), split(r"[^-]+", "removed", True), byte_level(space=True)]), 360)
    return save(t, "behaviors.json")


BYTES = ["<0x%02X>" % i for i in range(256)]


def texts_to_train():
    path = os.path.join(here, "../../../datasets/pretrain.jsonl")
    text = [json.loads(line)["text"] for line in open(path)][:100]
    return [word for s in text for word in s.split("\n")] + LINES[:8]


def without_added_bytes(t):
    o = json.loads(t.to_str())
    o["added_tokens"] = [a for a in o["added_tokens"] if a["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(o))


def sentencepiece_bpe(fuse):
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=fuse))
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return t


def grow(t, vocab):
    t.train_from_iterator(texts_to_train(), trainers.BpeTrainer(vocab_size=vocab, show_progress=False, max_token_length=12,
                          limit_alphabet=60, special_tokens=["<unk>", "<s>", "</s>"] + BYTES))
    t = without_added_bytes(t)
    t.add_special_tokens(["<|im_end|>"])
    t.add_tokens([AddedToken("say it", normalized=True), AddedToken("<think>", normalized=False, lstrip=True)])
    return t


def llama2():
    t = sentencepiece_bpe(True)
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return save(grow(t, 560), "llama2.json")


def mistral():
    t = sentencepiece_bpe(True)
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return save(grow(t, 560), "mistral.json")


def gemma():
    t = sentencepiece_bpe(False)
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return save(grow(t, 560), "gemma.json")


def unigram():
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.Punctuation(),
                                               pre_tokenizers.Metaspace()])
    t.decoder = decoders.Metaspace()
    t.train_from_iterator(texts_to_train(), trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>",
                          special_tokens=["<unk>"], show_progress=False))
    return save(t, "unigram.json")


def unigram_bytes():
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Lowercase()
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.train_from_iterator(texts_to_train(), trainers.UnigramTrainer(vocab_size=520, unk_token="<unk>",
                          special_tokens=["<unk>"] + BYTES, show_progress=False))
    o = json.loads(without_added_bytes(t).to_str())
    o["model"]["byte_fallback"] = True
    o["decoder"] = json.loads(sentencepiece_bpe(True).to_str())["decoder"]
    return save(Tokenizer.from_str(json.dumps(o)), "unigram_bytes.json")


def main():
    texts = LINES + [soup(i, 4 + i) for i in range(60)]
    with open(os.path.join(here, "expected.jsonl"), "w") as f:
        for make in (gpt2, qwen, llama3, deepseek, behaviors, llama2, mistral, gemma, unigram, unigram_bytes):
            t = make()
            for s in texts:
                f.write(json.dumps({"tokenizer": make.__name__ + ".json", "text": s, "ids": t.encode(s).ids}) + "\n")


if __name__ == "__main__":
    main()
