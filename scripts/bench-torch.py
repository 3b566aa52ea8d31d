#!/usr/bin/env python3
"""bench-torch: the format-2 model in PyTorch, plain and eager, to compare chr-pretrain with.

    scripts/bench-torch.py [--dtype f32|bf16] [--batch B] [--seq T] [--steps N] [--threads N] MODEL
    scripts/bench-torch.py --check GRADIENTS --tokens FILE MODEL

MODEL is a directory as of chr-pretrain -o, with full attention, no dense and no shared experts. The first form trains on random
tokens and prints one record: tokens per second, the median over the steps but for the first. bf16 is torch.autocast. The second
compares the gradients of the mean cross-entropy on the first record of FILE ({"tokens": [...]}) with those that chr-pretrain
--grad-dump wrote for it; status 1 when the relative difference (2-norm) of any is above 1e-3. Without torch: status 69.
"""
import argparse
import json
import statistics
import struct
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as e:
    print(f"bench-torch.py: {e}", file=sys.stderr)
    sys.exit(69)

PROJECTIONS = ["gate_proj", "up_proj", "down_proj"]


def read_tensors(path):
    with open(path, "rb") as f:
        data = bytearray(f.read())
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    out = {}
    for name, t in header.items():
        if t["dtype"] != "F32":
            sys.exit(f"bench-torch.py: {path}: {name} is {t['dtype']}, not F32")
        lo, hi = (8 + n + x for x in t["data_offsets"])
        out[name] = torch.frombuffer(data[lo:hi], dtype=torch.float32).reshape(t["shape"]).clone()
    return out


def stack_experts(tensors, c):
    """The experts of a layer as one parameter for each projection: (E, F, D) or (E, D, F)."""
    out = {k: v for k, v in tensors.items() if ".experts." not in k}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}.mlp.experts."
        for part in PROJECTIONS:
            out[p + part] = torch.stack([tensors[f"{p}{e}.{part}.weight"] for e in range(c["num_experts"])])
    return out


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Model:
    def __init__(self, path):
        with open(f"{path}/config.json") as f:
            self.c = c = json.load(f)
        if (set(c["layer_types"]) != {"full_attention"} or set(c["mlp_layer_types"]) != {"sparse"} or
                c["num_shared_experts"] or c["lookahead_steps"] or c.get("rope_scaling")):
            sys.exit("bench-torch.py: only full attention and routed experts are implemented")
        self.w = stack_experts(read_tensors(f"{path}/model.safetensors"), c)
        for p in self.w.values():
            p.requires_grad_()

    def tables(self, T):
        d = self.c["head_dim"]
        freq = self.c["rope_theta"] ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        angle = torch.outer(torch.arange(T, dtype=torch.float64), torch.cat((freq, freq)))
        return angle.cos().float(), angle.sin().float()

    def attention(self, x, p, cos, sin):
        c, w, eps = self.c, self.w, self.c["rms_norm_eps"]
        B, T, _ = x.shape
        H, G, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q = F.linear(x, w[p + "q_proj.weight"]).view(B, T, H, d)
        k = F.linear(x, w[p + "k_proj.weight"]).view(B, T, G, d)
        v = F.linear(x, w[p + "v_proj.weight"]).view(B, T, G, d).transpose(1, 2)
        q = rotate(rms_norm(q, w[p + "q_norm.weight"], eps).transpose(1, 2), cos, sin)
        k = rotate(rms_norm(k, w[p + "k_norm.weight"], eps).transpose(1, 2), cos, sin)
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        s = (q @ k.transpose(-1, -2) * d ** -0.5).masked_fill(hidden, float("-inf"))
        o = s.softmax(-1).to(v.dtype) @ v
        return F.linear(o.transpose(1, 2).reshape(B, T, H * d), w[p + "o_proj.weight"])

    def experts(self, x, p):
        c, w = self.c, self.w
        x = x.reshape(-1, x.shape[-1])
        weight, ids = F.linear(x, w[p + "gate.weight"]).float().softmax(-1).topk(c["num_experts_per_tok"])
        if c["norm_topk_prob"]:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(x)
        # Unbound once, or the gradient of all experts is built anew for each.
        gate, up, down = (w[p + "experts." + part].unbind(0) for part in PROJECTIONS)
        for e in range(c["num_experts"]):
            row, k = (ids == e).nonzero(as_tuple=True)
            if len(row) == 0:
                continue
            h = F.silu(F.linear(x[row], gate[e])) * F.linear(x[row], up[e])
            out = out.index_add(0, row, (F.linear(h, down[e]) * weight[row, k, None]).to(out.dtype))
        return out

    def loss(self, tokens):
        c, w, eps = self.c, self.w, self.c["rms_norm_eps"]
        h = F.embedding(tokens, w["model.embed_tokens.weight"])
        cos, sin = self.tables(tokens.shape[1])
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = h + self.attention(rms_norm(h, w[p + "input_layernorm.weight"], eps), p + "self_attn.", cos, sin)
            n = rms_norm(h, w[p + "post_attention_layernorm.weight"], eps)
            h = h + self.experts(n, p + "mlp.").view_as(h)
        h = rms_norm(h, w["model.norm.weight"], eps)
        head = "model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"
        logits = F.linear(h[:, :-1], w[head]).float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


def check(m, gradients, tokens):
    with open(tokens) as f:
        ids = torch.tensor([json.loads(f.readline())["tokens"]])
    want = stack_experts(read_tensors(gradients), m.c)
    m.loss(ids).backward()
    error = {n: ((p.grad - want[n]).norm() / (want[n].norm() + 1e-12)).item() for n, p in m.w.items()}
    name = max(error, key=error.get)
    print(json.dumps({"type": "check", "tensors": len(error), "worst": error[name], "name": name}))
    return 0 if error[name] < 1e-3 else 1


def bench(m, a):
    opt = torch.optim.AdamW(m.w.values(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    draw = torch.Generator().manual_seed(1)
    seconds = []
    for _ in range(a.steps + 1):
        tokens = torch.randint(m.c["vocab_size"], (a.batch, a.seq), generator=draw)
        began, cpu = time.perf_counter(), time.process_time()
        opt.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = m.loss(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.w.values(), 1.0)
        opt.step()
        seconds.append((time.perf_counter() - began, time.process_time() - cpu))
    wall, cpu = (statistics.median(x) for x in zip(*seconds[1:]))
    n = a.batch * a.seq
    print(json.dumps({"type": "bench", "what": f"pytorch {torch.__version__}", "dtype": a.dtype, "threads": a.threads,
                      "tokens": n, "tok_per_s": n / wall, "tok_per_cpu_s": n / cpu}))
    return 0


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--seq", type=int, default=256)
    ap.add_argument("--steps", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--check", metavar="GRADIENTS")
    ap.add_argument("--tokens", metavar="FILE")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    m = Model(a.model)
    return check(m, a.check, a.tokens) if a.check else bench(m, a)


if __name__ == "__main__":
    sys.exit(main())
