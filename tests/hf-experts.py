"""What tests/hf.t asks of a mask of experts: python tests/hf-experts.py GOLDEN EXPORTED. GOLDEN has
logits of the reference, with all experts and with some of them missing."""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

golden, path = sys.argv[1:]
want, ids = load_file(f"{golden}/expected.safetensors"), load_file(f"{golden}/batch.safetensors")
failed = 0


def result(name, good, more=""):
    global failed
    failed += not good
    print(f"{'ok' if good else 'BAD'} {name} {more}")


def near(name, logits):
    with torch.no_grad():
        worst = (model(ids["input_ids"]).logits - want[logits]).abs().max().item()
    result(name, worst < 1e-4, f"worst {worst:.2g}")


def refused(name, mask):
    try:
        model.set_available_experts(mask)
    except ValueError as why:
        return result(name, True, why)
    result(name, False)


model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True,
                                             dtype=torch.float32).eval()
mask = want["available_mask"] > 0.5
layers = [layer.mlp for layer in model.model.layers]
buffers = [m.available.data_ptr() for m in layers]
result("some are missing", 0 < mask.sum() < mask.numel())
near("all are there at first", "logits")
model.set_available_experts(mask.tolist())
near("some are missing in every layer", "logits_masked")
result("in the same memory", buffers == [m.available.data_ptr() for m in layers])
model.set_available_experts(mask.expand(len(layers), -1))
near("a mask for each layer", "logits_masked")
kept = [e.down_proj.weight.data.clone() for m in layers for e in m.experts]
for m in layers:
    for e in torch.where(~mask)[0].tolist():
        m.experts[e].down_proj.weight.data.fill_(float("nan"))
near("what is missing is not read", "logits_masked")
for weight, e in zip(kept, (e for m in layers for e in m.experts)):
    e.down_proj.weight.data.copy_(weight)
one = torch.ones(len(layers), mask.numel()).bool()
one[1] = mask
states = []
for m in (None, one):
    model.set_available_experts(m)
    with torch.no_grad():
        states.append(model(ids["input_ids"], output_hidden_states=True).hidden_states)
result("missing in the second layer alone", torch.equal(states[0][1], states[1][1]) and
       not torch.equal(states[0][2], states[1][2]))
model.set_available_experts(None)
near("all are there again", "logits")
refused("a mask of another size", [True] * (mask.numel() + 1))
model.config.num_shared_experts = 0
refused("nothing to take their place", mask)
sys.exit(failed > 0)
