"""What tests/hf.t asks transformers: python tests/hf.py DIR DUMP GREEDY. DUMP: chr-score --dump of
the same model on one record of tokens; GREEDY: tokens that chr-generate appended to it."""

import json
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

path, tokens_file, dump, greedy_file = sys.argv[1:5]
torch.manual_seed(0)
ids = torch.tensor([json.loads(open(tokens_file).readline())["tokens"]])
greedy = json.loads(open(greedy_file).readline())["tokens"]
failed = 0


def result(name, good, more=""):
    global failed
    failed += not good
    print(f"{'ok' if good else 'BAD'} {name} {more}")


def load(where, **kwargs):
    return AutoModelForCausalLM.from_pretrained(where, trust_remote_code=True,
                                                dtype=torch.float32, **kwargs).eval()


config = AutoConfig.from_pretrained(path, trust_remote_code=True)
model = load(path, attn_implementation="eager")
with torch.no_grad():
    logits = model(ids).logits[0]
ours = load_file(dump)
worst = (logits - ours["logits"]).abs().max().item()
result("logits", worst < 1e-4, f"worst {worst:.2g}")
result("enough was generated", len(greedy) > 7)
with torch.no_grad():
    sdpa = load(path, attn_implementation="sdpa")(ids).logits[0]
worst = (sdpa - logits).abs().max().item()
result("sdpa", worst < 1e-4, f"worst {worst:.2g}")
calls = []


def custom(module, query, key, value, attention_mask, scaling, sliding_window=None, **kwargs):
    """As engines have it that look at no mask: causal, and a window where the layer has one."""
    calls.append(module.layer_idx)
    n, m = query.shape[2], key.shape[2]
    ago = torch.arange(m - n, m)[:, None] - torch.arange(m)[None]
    seen = (ago >= 0) & (ago < (sliding_window or m))
    groups = query.shape[1] // key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1),
        attn_mask=seen, scale=scaling)
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS["mine"] = custom
model.config._attn_implementation = "mine"
for use_cache in (True, False):
    with torch.no_grad():
        out = model.generate(ids[:, :12], max_new_tokens=len(greedy), do_sample=False,
                             use_cache=use_cache, eos_token_id=None, pad_token_id=0)
    result(f"generate, cache {use_cache}", out[0, 12:].tolist() == greedy,
           f"{out[0, 12:].tolist()} {greedy}")
result("attention of another engine", sorted(set(calls)) == list(range(config.num_hidden_layers)))
model.config._attn_implementation = "eager"
with torch.no_grad():
    both = model(torch.cat((ids, ids.flip(1))), attention_mask=torch.ones(2, ids.shape[1]).long())
worst = (both.logits[0] - logits).abs().max().item()
result("a batch", worst < 1e-4, f"worst {worst:.2g}")
left = torch.cat((torch.zeros_like(ids[:, :5]), ids), 1)
mask = torch.cat((torch.zeros_like(ids[:, :5]), torch.ones_like(ids)), 1)
with torch.no_grad():
    padded = model(left, attention_mask=mask,
                   position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[0, 5:]
worst = (padded - logits).abs().max().item()
result("padding on the left", worst < 1e-3, f"worst {worst:.2g}")
model.train()
loss = model(ids, labels=ids).loss
loss.backward()
nll = torch.nn.functional.cross_entropy(ours["logits"][:-1], ids[0, 1:])
result("a loss, and gradients", abs(loss.item() - nll.item()) < 1e-4 and
       all(p.grad is not None for n, p in model.named_parameters()
           if "experts." not in n and "lookahead" not in n))
if getattr(config, "lookahead_steps", 0) and config.model_type == "chronos":
    ahead = model(ids, output_lookahead=True).lookahead_logits[0].softmax(-1)
    worst = (ahead.reshape(ours["lookahead_probs"].shape) - ours["lookahead_probs"]).abs().max()
    result("the lookahead head", worst.item() < 1e-5, f"worst {worst.item():.2g}")
with tempfile.TemporaryDirectory() as again:
    model.eval().save_pretrained(again)
    with torch.no_grad():
        worst = (load(again, attn_implementation="eager")(ids).logits[0] - logits).abs().max()
    result("saved and loaded again", worst.item() < 1e-5, f"worst {worst.item():.2g}")


def adapter():
    """A step of PEFT's LoRA, merged."""
    import peft

    lora = peft.get_peft_model(load(path), peft.LoraConfig(
        r=2, target_modules=["o_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD((p for p in lora.parameters() if p.requires_grad), lr=1.0)
    first = lora(input_ids=ids, labels=ids).loss
    first.backward()
    optimizer.step()
    optimizer.zero_grad()
    lora(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        trained = lora.eval()(input_ids=ids).logits
        merged = lora.merge_and_unload()(ids).logits
    worst = (trained - merged).abs().max().item()
    moved = (trained[0] - logits).abs().max().item()
    result("PEFT trains and merges an adapter", worst < 1e-4 < moved, f"{worst:.2g} {moved:.2g}")


def trainer():
    """Two steps of transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(out, max_steps=4, per_device_train_batch_size=1, use_cpu=True,
                                 learning_rate=1e-2, report_to=[], save_strategy="no",
                                 logging_steps=1, lr_scheduler_type="constant")
        row = {"input_ids": ids[0], "labels": ids[0]}
        t = Trainer(load(path), args, train_dataset=[row] * 4)
        t.train()
        losses = [x["loss"] for x in t.state.log_history if "loss" in x]
    result("Trainer lowers the loss", losses[-1] < losses[0], str(losses))


for package, test in (("peft", adapter), ("accelerate", trainer)):
    try:
        __import__(package)
    except ImportError:
        continue
    test()
sys.exit(failed > 0)
