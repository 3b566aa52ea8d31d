"""What tests/peft.t asks PEFT: python tests/peft-matrix.py FAMILIES OWN WORK BUILD [NAME...].
FAMILIES: a folder of model directories; OWN: of models of ours, NAME, and what chr-convert --to hf
makes of them, NAME.hf. Adapters that PEFT makes are merged by chr-merge, and logits compared; those
that our trainers make are loaded by PEFT. One line for each: "ok FAMILY: KIND, DIRECTION ..." or
"BAD ...". PEFT may refuse what it does not have: "none FAMILY: ..."."""

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
families, own, work, build = sys.argv[1:5]
only = sys.argv[5:]
ids = [3] + [3 + i * i * 7 % 290 for i in range(1, 32)]
tokens = os.path.join(work, "tokens.jsonl")
open(tokens, "w").write(json.dumps({"tokens": ids}) + "\n")


def result(name, good, more=""):
    print(f"{'ok' if good else 'BAD'} {name} {more}".replace("\n", " "), flush=True)


def run(program, *args):
    """0, or the status and what it said."""
    done = subprocess.run([os.path.join(build, program), *args], capture_output=True, text=True)
    return done.returncode, done.stderr.strip(), done.stdout


def fresh(*parts):
    path = os.path.join(work, *parts)
    shutil.rmtree(path, ignore_errors=True)
    return path


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def ours(model, *options):
    """What chr-score says of a model directory."""
    dump = os.path.join(work, "dump")
    rc, err, _ = run("chr-score", "-q", "-m", model, *options, "--dump", dump, tokens)
    if rc != 0:
        raise RuntimeError(err)
    return load_file(dump)["logits"]


def merge(base, adapter):
    out = fresh("merged")
    rc, err, _ = run("chr-merge", "-q", "-m", base, "-o", out, adapter)
    return rc, err, out


def stir(model, seed):
    """B is 0 at first: an adapter that does something."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p) * (0.3 / p.shape[1] ** 0.5 if "lora_A" in name else 0.15)
        elif "modules_to_save" in name:
            p.data = p.data + 0.05 * torch.randn_like(p)


def beside(name, want, base, adapter, near):
    """The same, not merged. What takes the place of a part of the model cannot be added to it."""
    try:
        worst = (want - ours(base, "--adapter", adapter)).abs().max().item()
    except RuntimeError as e:
        return result(name, "saved whole" in name and "takes the place of" in str(e), e)
    result(name, worst < near, f"worst {worst:.2g}")


def compare(name, want, base, adapter, plain):
    rc, err, out = merge(base, adapter)
    if rc != 0:
        return result(name, False, f"status {rc}: {err}")
    worst = (want - ours(out)).abs().max().item()
    near = 1e-3 if plain.dtype == torch.float64 else 1e-4
    result(name, worst < near and (want - plain).abs().max() > 1e-3,
           f"worst {worst:.2g}, changed by {(want - plain).abs().max().item():.2g}")
    beside(f"{name}, not merged", want, base, adapter, near)


def peft_to_ours(family, kind, base, model, plain, **config):
    name = f"{family}: {kind}, PEFT to ours"
    try:
        peft = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    except ValueError as e:
        return result(name, False, f"PEFT: {e}")
    stir(peft, 7)
    want = logits_of(peft)
    adapter = fresh("adapter")
    peft.save_pretrained(adapter)
    compare(name, want, base, adapter, plain)


def kinds(model):
    """What there is to adapt in this family: kind, config."""
    names = [n for n, _ in model.named_parameters()]
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules()
              if isinstance(m, torch.nn.Linear) and ".self_attn." in n}
    yield "attention", dict(r=4, lora_alpha=6, target_modules=sorted(linear))
    yield "all-linear", dict(r=3, lora_alpha=6, target_modules="all-linear")
    experts = [n.split(".", 3)[-1] for n in names if n.endswith(("gate_up_proj", "down_proj"))]
    if experts:
        experts = sorted(set(experts))
        yield "experts", dict(r=4, lora_alpha=8, target_modules=[], target_parameters=experts)
        yield "experts' down", dict(r=2, lora_alpha=8, target_modules=[], target_parameters=[
            n for n in experts if "down" in n])
        yield "experts' gate and up", dict(r=2, lora_alpha=8, target_modules=[], target_parameters=[
            n for n in experts if "gate_up" in n])
        router = sorted({n.split(".", 3)[-1] for n in names if n.endswith(
            ("gate.weight", "router.weight", "gate.wg.weight"))})
        yield "router", dict(r=2, lora_alpha=8, target_modules=[], target_parameters=router)
        yield "patterns and rsLoRA", dict(
            r=4, lora_alpha=8, target_modules=sorted(linear), target_parameters=experts,
            use_rslora=True, rank_pattern={"down_proj": 2, r"layers\.1\..*q_.*proj": 3},
            alpha_pattern={"gate_up_proj": 5, "k.*_proj": 3})
    tied = model.config.get_text_config().tie_word_embeddings
    if not tied:
        yield "head", dict(r=2, lora_alpha=8, target_modules=["lm_head"])
    yield "saved whole", dict(r=2, lora_alpha=8, target_modules=sorted(linear),
                              modules_to_save=["norm"] if tied else ["lm_head", "embed_tokens"])


def ours_to_peft(family, kind, base, model, plain, targets):
    name = f"{family}: {kind}, ours to PEFT"
    adapter = fresh("adapter")
    args = [x for t in targets for x in ("--lora-target", t)]
    rc, err, _ = run("chr-pretrain", "-q", "-m", base, "-o", adapter, "-n", "4", "-b", "1", "--seq",
                     "32", "-l", "0.05", "--warmup", "1", "--lora-rank", "3", *args, tokens)
    if rc != 0:
        return result(name, False, f"chr-pretrain, status {rc}: {err}")
    try:
        peft = PeftModel.from_pretrained(copy.deepcopy(model), adapter).eval()
    except (ValueError, RuntimeError, KeyError) as e:
        return result(name, False, f"PEFT: {e}")
    compare(name, logits_of(peft), base, adapter, plain)


def targets(model):
    """Of --lora-target: kind, words."""
    names = [n for n, _ in model.named_parameters()]
    yield "attention", []
    yield "all-linear", ["all-linear"]
    if any(".experts." in n for n in names):
        yield "experts", ["experts"]
        yield "one expert and router", ["*.layers.1.*.experts.2.*", "router"]
        yield "experts' gate", ["w1" if model.config.model_type in ("mixtral", "minimax_m2")
                                else "*.experts.*.gate_proj*"]
    if any("shared" in n for n in names):
        yield "shared_experts", ["shared_experts"]
    if any(n.endswith(".mlp.gate_proj.weight") for n in names):
        yield "mlp", ["mlp"]
    if not model.config.get_text_config().tie_word_embeddings:
        yield "head", ["lm_head"]


def load(path):
    """Gated delta layers make noise in single precision: theirs is left out, and ours allowed for."""
    recurs = "linear_attention" in open(os.path.join(path, "config.json")).read()
    more = dict(dtype=torch.float64, experts_implementation="eager") if recurs else \
        dict(dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **more).eval()


def refused(name, word, base, adapter):
    rc, err, _ = merge(base, adapter)
    result(f"{name}, refused by name", rc == 65 and word in err, err)


def beginnings(family, base, model, plain):
    """Adapters that do not begin at nothing, and variants."""
    linear = ["q_proj", "v_proj", "o_proj"]
    for init in ("gaussian", "eva", "orthogonal"):
        peft_to_ours(family, init, base, model, plain, r=4, lora_alpha=8, target_modules=linear,
                     init_lora_weights=init)
    for init in ("pissa", "pissa_niter_4", "olora"):
        peft = get_peft_model(copy.deepcopy(model), LoraConfig(
            r=4, lora_alpha=4, target_modules=linear, init_lora_weights=init)).eval()
        begin = fresh("begin")
        peft.peft_config["default"].init_lora_weights = True
        peft.save_pretrained(begin)
        peft.peft_config["default"].init_lora_weights = init
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.data = p.data + 0.1 * torch.randn_like(p)
        want = logits_of(peft)
        adapter = fresh("adapter")
        peft.save_pretrained(adapter, path_initial_model_for_weight_conversion=begin)
        compare(f"{family}: {init} that PEFT converted, PEFT to ours", want, base, adapter, plain)
        peft.save_pretrained(adapter)
        refused(f"{family}: {init} as it is", init, base, adapter)
    for word, config in (("use_dora", dict(use_dora=True)), ("bias", dict(bias="all")),
                         ("lora_bias", dict(lora_bias=True))):
        peft = get_peft_model(copy.deepcopy(model), LoraConfig(
            r=4, lora_alpha=4, target_modules=linear, **config))
        adapter = fresh("adapter")
        peft.save_pretrained(adapter)
        refused(f"{family}: {word}", word, base, adapter)
    config = json.load(open(f"{adapter}/adapter_config.json"))
    for word in ("corda", "loftq", "lora_ga"):
        json.dump({**config, "init_lora_weights": word, "lora_bias": False},
                  open(f"{adapter}/adapter_config.json", "w"))
        refused(f"{family}: {word}", word, base, adapter)


def apart(family, base, model, plain):
    """Experts one by one, as PEFT adapted them before transformers 5."""
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(
        r=2, lora_alpha=6, target_modules=[], target_parameters=["experts.gate_up_proj"])).eval()
    stir(peft, 3)
    want = logits_of(peft)
    adapter = fresh("adapter")
    peft.save_pretrained(adapter)
    stored = load_file(f"{adapter}/adapter_model.safetensors")
    single = {}
    for key, value in stored.items():
        module, part = key.split(".lora_")
        experts = model.config.num_experts
        for e in range(experts):
            for half, name in enumerate(("gate_proj", "up_proj")):
                one = value[e * 2:e * 2 + 2] if part[0] == "A" else \
                    value.view(value.shape[0], 2, experts)[:, :, e].chunk(2)[half]
                single[f"{module}.{e}.{name}.lora_{part}"] = one.clone()
    save_file(single, f"{adapter}/adapter_model.safetensors")
    config = json.load(open(f"{adapter}/adapter_config.json"))
    config.update(target_modules=["gate_proj", "up_proj"], target_parameters=None)
    json.dump(config, open(f"{adapter}/adapter_config.json", "w"))
    compare(f"{family}: experts one by one, PEFT to ours", want, base, adapter, plain)


def tied(family, base, model):
    for what, config in (("an adapter of the head", dict(target_modules=["lm_head"])),
                         ("a head of its own", dict(target_modules=["q_proj"],
                                                    modules_to_save=["lm_head"]))):
        peft = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, **config))
        adapter = fresh("adapter")
        peft.save_pretrained(adapter)
        refused(f"{family}: {what}", "tie_word_embeddings", base, adapter)
    rc, err, _ = run("chr-pretrain", "-q", "-m", base, "-o", fresh("adapter"), "-n", "1",
                     "--lora-rank", "2", "--lora-target", "lm_head", tokens)
    result(f"{family}: --lora-target lm_head, refused by name",
           rc == 64 and "tie_word_embeddings" in err, err)


def family_matrix(family, base):
    model = load(base)
    plain = logits_of(model)
    for kind, config in kinds(model):
        peft_to_ours(family, kind, base, model, plain, **config)
    if model.config.model_type in ("lfm2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"):
        return          # which are run here, and not trained
    for kind, words in targets(model):
        ours_to_peft(family, kind, base, model, plain, words)
    if family == "qwen3_moe":
        beginnings(family, base, model, plain)
        apart(family, base, model, plain)
    if family == "qwen3":
        tied(family, base, model)


def own_matrix(name):
    """A model of ours, which transformers has as chr-convert --to hf wrote it."""
    base = os.path.join(own, name)
    model = load(base + ".hf")
    plain = logits_of(model)
    for kind, config in kinds(model):
        if "saved" not in kind or not model.config.tie_word_embeddings:
            peft_to_ours(name, kind, base, model, plain, **config)
    for kind, words in targets(model):
        ours_to_peft(name, kind, base, model, plain, words)


for family in sorted(os.listdir(families)) if os.path.isdir(families) else []:
    base = os.path.join(families, family)
    if os.path.exists(f"{base}/config.json") and not family.endswith(
            ("fp8", "mxfp4", "mtp", "shards")) and (not only or family in only):
        family_matrix(family, base)
for name in sorted(os.listdir(own)):
    if os.path.exists(os.path.join(own, name + ".hf")) and (not only or name in only):
        own_matrix(name)
