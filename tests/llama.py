"""What tests/llama.t asks the programs that read GGUF files. Each question prints lines "ok NAME"
and "BAD NAME".

    python llama.py has ENGINE                      is it here? ENGINE: llama, ik or gguf
    python llama.py greedy ENGINE FILE DUMP TOKENS START TEXT
                                    logits of TOKENS as chr-score --dump has them, and the tokens that
                                    chr-generate appended to those of START
    python llama.py kl ENGINE FILE DUMP TOKENS MOST the divergence from the logits of DUMP
    python llama.py tokens ENGINE FILE TEXT IDS     lines of TEXT against lines of ids
    python llama.py same FILE FILE                  values of the tensors of two files
"""

import ctypes
import json
import os
import sys

import numpy as np


def result(name, good, more=""):
    print(f"{'ok' if good else 'BAD'} {name} {more}")
    return good


class Llama:
    """llama.cpp, through llama-cpp-python."""
    error = 1e-4                                # of the largest logit, at float32

    def __init__(self, path):
        from llama_cpp import Llama
        self.model = Llama(model_path=path, n_ctx=512, n_batch=512, logits_all=True, type_k=0,
                           type_v=0, flash_attn=False, verbose=False, n_threads=1,
                           n_threads_batch=1)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[:len(ids)])

    def tokens(self, text):
        return self.model.tokenize(text, add_bos=False, special=False)


class Ik:
    """ik_llama.cpp, through ik-llama-cpp-python."""
    error = 5e-3                                # its values are float16

    def __init__(self, path):
        from ik_llama_cpp import _ctypes_api as api
        from ik_llama_cpp._internals import IkModel
        self.api = api
        self.model = IkModel(path)
        p = api.llama_context_default_params()
        p.n_ctx = p.n_batch = 512
        p.n_threads = p.n_threads_batch = 1
        p.type_k, p.type_v = 0, 1               # float32 is refused for values
        p.flash_attn = False
        self.context = api.llama_init_from_model(self.model.model, p)
        if not self.context:
            raise RuntimeError("no context")

    def logits(self, ids):
        api = self.api
        api.llama_kv_cache_clear(self.context)
        rows = []
        for pos, token in enumerate(ids):
            batch = api.llama_batch_init(1, 0, 1)
            batch.n_tokens = 1
            batch.token[0], batch.pos[0] = token, pos
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
            if api.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode fails")
            api.llama_batch_free(batch)
            row = api.llama_get_logits_ith(self.context, 0)
            rows.append(np.ctypeslib.as_array(row, (self.model.n_vocab,)).copy())
        return np.array(rows)

    def tokens(self, text):
        n = len(text) + 8
        buf = (ctypes.c_int32 * n)()
        got = self.api.llama_tokenize(self.model.model, text, len(text), buf, n, False, False)
        return list(buf[:got])


ENGINES = {"llama": Llama, "ik": Ik}


def quiet(make, *args):
    """These libraries write to standard error by themselves."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        return make(*args)
    finally:
        os.dup2(saved, 2)


def tensors(path):
    from gguf import GGUFReader
    from gguf.quants import dequantize
    return {t.name: np.ascontiguousarray(
        dequantize(t.data, t.tensor_type).astype(np.float32)).reshape(-1)
        for t in GGUFReader(path).tensors}


def dumped(path):
    from safetensors.numpy import load_file
    return load_file(path)["logits"].astype(np.float64)


def record(path):
    with open(path, encoding="utf-8") as f:
        return json.loads(f.readline())["tokens"]


def softmax_log(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def greedy(engine, path, dump, tokens, start, appended):
    e = quiet(ENGINES[engine], path)
    ids, ours = record(tokens), dumped(dump)
    theirs = quiet(e.logits, ids).astype(np.float64)
    worst = np.abs(theirs - ours[:len(ids)]).max()
    good = result("logits", worst < e.error * np.abs(ours).max(), f"worst {worst:.2g}")
    ids, want = record(start), record(appended)
    rows = quiet(e.logits, ids + want[:-1])[len(ids) - 1:].astype(np.float64)
    lacks = rows.max(-1) - rows[np.arange(len(want)), want]
    equal = int((lacks > 0).sum()) == 0
    close = (lacks <= e.error * np.abs(rows).max()).all()
    return result("greedy text", len(want) == 40 and close,
                  "" if equal else f"but for {int((lacks > 0).sum())} draws within the error") and good


def kl(engine, path, dump, tokens, most):
    e = quiet(ENGINES[engine], path)
    ids, ours = record(tokens), dumped(dump)
    theirs = quiet(e.logits, ids).astype(np.float64)
    p, q = softmax_log(ours[:len(ids)]), softmax_log(theirs)
    d = (np.exp(p) * (p - q)).sum(-1).mean()
    return result("divergence", d < float(most), f"{d:.3g}")


def same_tokens(engine, path, text, wanted):
    e = quiet(ENGINES[engine], path)
    with open(text, "rb") as f, open(wanted, encoding="utf-8") as g:
        for n, (line, want) in enumerate(zip(f.read().split(b"\n"), g), 1):
            got, want = quiet(e.tokens, line), json.loads(want)["tokens"]
            if got != want:
                return result("tokens", False, f"of line {n}: {got} {want}")
    return result("tokens", True, f"of {n} lines")


def same(a, b):
    x, y = tensors(a), tensors(b)
    good = result("tensors", x.keys() == y.keys() and len(x) > 5, f"{len(x)}")
    worse = [k for k in x if not np.array_equal(x[k], y[k])]
    return result("values", good and not worse, " ".join(worse[:3]))


def has(engine):
    __import__({"llama": "llama_cpp", "ik": "ik_llama_cpp"}.get(engine, engine))
    return True


asked = {"has": has, "greedy": greedy, "kl": kl, "tokens": same_tokens, "same": same}
sys.exit(0 if asked[sys.argv[1]](*sys.argv[2:]) else 1)
