"""What tests/hf-families.t asks transformers of exported directories: a folder on each line of
stdin, and what its checks are called. A folder has out/ (the export), tokens.jsonl (one record),
dump.st (chr-score --dump of it) and greedy.jsonl (24 tokens that chr-generate makes of its first
12), and source/ where out/ must hold the same bytes. Transformers is asked in double precision."""

import filecmp
import glob
import json
import os
import struct
import sys

import torch
import transformers
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


def tensors(path):
    """name -> type, shape and bytes"""
    found = {}
    for file in sorted(glob.glob(f"{path}/model*.safetensors")):
        with open(file, "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            start = f.tell()
            header.pop("__metadata__", None)
            for name, t in header.items():
                first, last = t["data_offsets"]
                f.seek(start + first)
                found[name] = t["dtype"], t["shape"], f.read(last - first)
    return found


def beside(path):
    """What is not weights."""
    return sorted(n for n in os.listdir(path) if "safetensors" not in n)


def same(source, out):
    files = beside(source)
    good = files == beside(out) and all(
        filecmp.cmp(f"{source}/{n}", f"{out}/{n}", shallow=False) for n in files)
    return good and tensors(source) == tensors(out)


def load(path):
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=True)
    args = {}
    if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "fp8":
        args["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    kind = transformers.AutoModelForCausalLM
    if "ForConditionalGeneration" in (config.architectures or [""])[0]:
        kind = transformers.AutoModelForImageTextToText
    model, info = kind.from_pretrained(path, trust_remote_code=True, dtype=torch.float32,
                                       attn_implementation="eager",
                                       experts_implementation="eager",
                                       output_loading_info=True, **args)
    odd = {k: sorted(map(str, v))[:3] for k, v in info.items() if v}
    return model.double().eval(), odd


def tokens(file):
    with open(file) as f:
        return json.loads(f.readline())["tokens"]


def tolerance(config):
    """Of states that sum over a text in single precision rounding shows more."""
    return 5e-4 if "linear_attention" in (getattr(config, "layer_types", None) or []) else 1e-4


def check(folder):
    """(what, good, more) of each thing that must hold."""
    out, odd_there = f"{folder}/out", {}
    if os.path.exists(f"{folder}/source"):
        yield "bytes", same(f"{folder}/source", out), ""
        odd_there = load(f"{folder}/source")[1]
    model, odd = load(out)
    yield "no key is odd that was not", odd == odd_there, odd
    config = model.config.get_text_config()
    ids = torch.tensor([tokens(f"{folder}/tokens.jsonl")])
    want = tokens(f"{folder}/greedy.jsonl")
    with torch.no_grad():
        logits = model(ids).logits[0]
        worst = (logits - load_file(f"{folder}/dump.st")["logits"]).abs().max().item()
        yield "logits", worst < tolerance(config), f"worst {worst:.2g}"
        text = model.generate(ids[:, :12], max_new_tokens=24, do_sample=False,
                              eos_token_id=None, pad_token_id=0)[0, 12:].tolist()
    n, stops = len(want), torch.tensor(config.eos_token_id or -1).flatten().tolist()
    good = text[:n] == want and (n == 24 or text[n] in stops)
    yield "text", good and n > 3, f"{n} tokens"


for line in sys.stdin:
    where, name = line.split(maxsplit=1)
    try:
        for what, good, more in check(where):
            print("ok" if good else "BAD", f"{name.strip()}: {what} {more}", flush=True)
    except Exception as why:
        print("BAD", f"{name.strip()}: {type(why).__name__} {' '.join(str(why).split())[:300]}",
              flush=True)
