#!/usr/bin/env python3
"""Makes the files of tests/data/tok/files and their expected.jsonl: tokenizers that are not a tokenizer.json,
with what the packages that read them elsewhere make of a few texts (tiktoken, sentencepiece, tokenizers):

    venv/bin/pip install tiktoken sentencepiece tokenizers && venv/bin/python tests/data/tok/make_files.py
"""
import base64
import json
import os

import sentencepiece
import tiktoken
from make import LINES, here
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
out = os.path.join(here, "files")
expected = []


def expect(name, special, texts, ids):
    expected.extend({"tokenizer": name, "special": special, "text": t, "ids": i} for t, i in zip(texts, ids))


def bytes_of(token):
    stand = {c: b for b, c in enumerate(byte_chars())}
    return bytes(stand[c] for c in token)


def byte_chars():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(rest)) for b in range(256)]


def ranks():
    """llama3.json as ranks: its tokens in the order of their ids."""
    with open(os.path.join(here, "llama3.json"), encoding="utf-8") as f:
        j = json.load(f)
    special = {t["content"] for t in j["added_tokens"]}
    words = sorted((i, t) for t, i in j["model"]["vocab"].items() if t not in special)
    return {bytes_of(t): rank for rank, (_, t) in enumerate(words)}


def save_ranks(r):
    with open(os.path.join(out, "x.tiktoken"), "wb") as f:
        for token, rank in r.items():
            f.write(base64.b64encode(token) + b" %d\n" % rank)
    model = tiktoken.Encoding("x", pat_str=LLAMA, mergeable_ranks=r, special_tokens={})
    expect("x.tiktoken", False, LINES, [model.encode_ordinary(t) for t in LINES])


def save_tekken(r):
    vocab = [{"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": t.decode(errors="replace")}
             for t, i in r.items()]
    j = {"config": {"pattern": LLAMA, "num_vocab_tokens": len(vocab), "default_vocab_size": len(vocab) + 24,
                    "default_num_special_tokens": 24, "version": "v3"}, "vocab": vocab}
    with open(os.path.join(out, "tekken.json"), "w", encoding="utf-8") as f:
        json.dump(j, f)
    model = tiktoken.Encoding("x", pat_str=LLAMA, mergeable_ranks=r, special_tokens={})
    expect("tekken.json", False, LINES, [[i + 24 for i in model.encode_ordinary(t)] for t in LINES])


def train(name, **more):
    with open(os.path.join(here, "../../../datasets/pretrain.jsonl"), encoding="utf-8") as f:
        text = [json.loads(line)["text"].replace("\n", " ") for line in f][:60]
    path = os.path.join(out, "text")
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(text + [line.replace("\n", " ").replace("\0", "") for line in LINES]))
    prefix = os.path.join(out, name.removesuffix(".model"))
    sentencepiece.SentencePieceTrainer.train(input=path, model_prefix=prefix, vocab_size=500, hard_vocab_limit=False,
                                             minloglevel=2, character_coverage=0.99, **more)
    os.remove(path)
    os.remove(prefix + ".vocab")


def pieces(name, **more):
    train(name, **more)
    path = os.path.join(out, name)
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    texts = [t for t in LINES if not t.startswith(" ") and "\0" not in t]
    expect(name, False, texts, [model.encode(t) for t in texts])


def mapped(name, **more):
    """With a map of characters, which the Hugging Face library asks for graphemes."""
    train(name, **more)
    m = pb.ModelProto()
    with open(os.path.join(out, name), "rb") as f:
        m.ParseFromString(f.read())
    t = Tokenizer(models.Unigram([(p.piece, p.score) for p in m.pieces], 0, m.trainer_spec.byte_fallback))
    t.normalizer = normalizers.Sequence([normalizers.Precompiled(m.normalizer_spec.precompiled_charsmap),
                                         normalizers.Replace(Regex(r"\A +| +\z"), ""),
                                         normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "always")
    t.decoder = decoders.Metaspace("\u2581", "always")
    t.add_special_tokens([AddedToken(p.piece, normalized=False, special=True) for p in m.pieces if p.type in (2, 3)])
    t.add_tokens([AddedToken(p.piece, normalized=False) for p in m.pieces if p.type == 4])
    texts = [*LINES, "a<sep>b <s>", "e\u0301\u0323x \uac00\u1100\u1161 \u00a0\u0897"]
    expect(name, True, texts, [t.encode(s, add_special_tokens=False).ids for s in texts])


os.makedirs(out, exist_ok=True)
save_ranks(ranks())
save_tekken(ranks())
pieces("bpe.model", model_type="bpe", byte_fallback=True, remove_extra_whitespaces=False,
       normalization_rule_name="identity")
mapped("unigram.model", model_type="unigram", normalization_rule_name="nmt_nfkc", user_defined_symbols=["<sep>"])
with open(os.path.join(out, "expected.jsonl"), "w", encoding="utf-8") as f:
    for line in expected:
        f.write(json.dumps(line, ensure_ascii=False) + "\n")
