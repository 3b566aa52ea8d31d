#!/usr/bin/env python3
"""torch-families: gradients of models of published families, in transformers and here.

    tests/torch-families.py make
    tests/torch-families.py check TOKENS FAMILY...

The first form writes small random models into directories of the names of their families, which it
prints. The second compares the gradients of the mean cross-entropy on the first record of TOKENS
({"tokens": [...]}), by transformers in double precision, with those of chr-pretrain --grad-dump
FAMILY.safetensors: a record for each, with the largest relative difference (2-norm) of a parameter, 1
for one that is not in both. Without torch or transformers: status 69.
"""
import json
import sys

try:
    import torch
    import transformers
    from safetensors.torch import load_file
except ImportError as e:
    print(f"torch-families.py: {e}", file=sys.stderr)
    sys.exit(69)

COMMON = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": {"attention_bias": True},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 16,
                  "norm_topk_prob": True},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 1.5},
    "deepseek_v3": {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
                    "moe_intermediate_size": 24, "first_k_dense_replace": 1, "num_key_value_heads": 4,
                    "q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
                    "v_head_dim": 12},
    "gpt_oss": EXPERTS | {"head_dim": 16, "sliding_window": 20, "swiglu_limit": 1.5,
                          "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0,
                                              "beta_slow": 1.0, "truncate": False, "rope_theta": 10000.0,
                                              "original_max_position_embeddings": 64}},
    "granitemoe": EXPERTS | {"embedding_multiplier": 6.0, "residual_multiplier": 0.22, "logits_scaling": 3.0,
                             "attention_multiplier": 0.1, "tie_word_embeddings": True},
}


def make(family, path):
    """Weights spread so that no term is invisible."""
    torch.manual_seed(7)
    c = transformers.AutoConfig.for_model(family, **COMMON | FAMILIES[family])
    m = transformers.AutoModelForCausalLM.from_config(c)
    for name, p in list(m.named_parameters()) + [b for b in m.named_buffers() if "correction" in b[0]]:
        spread = 0.3 if p.dim() == 1 or name.endswith("_bias") else 1.6 / p.shape[-1] ** 0.5
        p.data.normal_(1 if "norm" in name else 0, spread)
    m.save_pretrained(path)


def apart(name, g, woven):
    """What one tensor of transformers holds, as the parameters that it is here."""
    base, part = name.rsplit(".", 1)
    if not base.endswith("experts"):
        return {name: g}
    if part.endswith("_bias"):
        return {f"{base}.{k}": v for k, v in
                ({part: g} if "down" in part else {"gate_proj_bias": g[:, ::2], "up_proj_bias": g[:, 1::2]}).items()}
    g = g.transpose(1, 2) if woven else g
    half = g.shape[1] // 2
    parts = {"down_proj": g} if "down" in part else \
        {"gate_proj": g[:, ::2], "up_proj": g[:, 1::2]} if woven else \
        {"gate_proj": g[:, :half], "up_proj": g[:, half:]}
    return {f"{base}.{e}.{k}.weight": v[e] for k, v in parts.items() for e in range(len(g))}


def plain(name):
    return name.replace("block_sparse_moe.", "mlp.").replace("router.layer.", "router.")


def check(path, gradients, tokens):
    m = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager",
                                                          experts_implementation="eager").double()
    with open(tokens) as f:
        ids = torch.tensor([json.loads(f.readline())["tokens"]])
    logits = m(ids, use_cache=False).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
    want = {}
    for name, p in m.named_parameters():
        g = torch.zeros_like(p) if p.grad is None else p.grad
        want |= apart(plain(name), g, m.config.model_type == "gpt_oss")
    got = {plain(k): v.double() for k, v in load_file(gradients).items() if "correction_bias" not in k}
    scale = max(g.norm() for g in want.values())
    error = dict.fromkeys(want | got, 1)
    error |= {k: ((got[k] - g).norm() / (g.norm() + 1e-6 * scale)).item() for k, g in want.items() if k in got}
    name = max(error, key=error.get)
    print(json.dumps({"type": "check", "family": path, "tensors": len(error), "worst": error[name], "name": name}))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if sys.argv[1] == "make":
        for family in FAMILIES:
            make(family, family)
            print(family)
    else:
        for family in sys.argv[3:]:
            check(family, f"{family}.safetensors", sys.argv[2])
