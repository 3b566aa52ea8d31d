"""Models of chronos in transformers: AutoModelForCausalLM.from_pretrained(DIR,
trust_remote_code=True). chr-convert --to hf writes this file beside the weights.

What each part computes is said in chr-model(5) of chronos. Attention goes through the function
that config._attn_implementation names, so that other engines can put theirs in its place.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MLA, SLIDING, FULL = "mla_attention", "sliding_attention", "full_attention"
# What transformers calls the cache of keys and values: past_key_values before its version 5.20.
CACHE = next(n for n in ("cache", "past_key_values")
             if n in inspect.signature(create_causal_mask).parameters)


class ChronosConfig(PreTrainedConfig):
    """config.json as chr-model(5) has it. layer_types is what transformers knows of our kinds of
    attention; attention_types is what the file says."""

    model_type = "chronos"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_tp_plan = {f"layers.*.self_attn.{name}": "colwise" for name in (
        "q_proj", "k_proj", "v_proj", "q_nope_proj", "q_rope_proj", "k_nope_proj", "k_rope_proj",
    )} | {"layers.*.self_attn.o_proj": "rowwise"}
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    def __init__(self, chronos_format=1, vocab_size=6400, hidden_size=768, num_hidden_layers=8,
                 num_attention_heads=8, num_key_value_heads=4, head_dim=None,
                 intermediate_size=None, moe_intermediate_size=None, num_experts=4,
                 num_experts_per_tok=1, num_shared_experts=1, norm_topk_prob=True,
                 kv_latent_dim=64, rope_dim=32, sliding_window_size=2048, layer_types=None,
                 mlp_layer_types=None, use_hybrid_attention=True, use_moe=True, rope_theta=1e6,
                 rope_scaling=None, inference_rope_scaling=False, rms_norm_eps=1e-5,
                 max_position_embeddings=32768, lookahead_steps=2, tie_word_embeddings=True,
                 initializer_range=0.02, use_cache=True, **kwargs):
        layers = num_hidden_layers
        rope = kwargs.pop("rope_parameters", None)
        if rope:
            rope_theta, rope_scaling = rope.get("rope_theta", rope_theta), rope
        self.chronos_format = chronos_format
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.intermediate_size = intermediate_size or math.ceil(hidden_size * math.pi / 64) * 64
        self.moe_intermediate_size = moe_intermediate_size or self.intermediate_size
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_shared_experts = num_shared_experts
        self.norm_topk_prob = norm_topk_prob
        self.kv_latent_dim = kv_latent_dim
        self.rope_dim = rope_dim
        self.use_hybrid_attention = use_hybrid_attention
        self.attention_types = layer_types or [
            (SLIDING if i % 2 else MLA) if use_hybrid_attention else FULL for i in range(layers)]
        self.layer_types = [SLIDING if t == SLIDING else FULL for t in self.attention_types]
        self.sliding_window_size = sliding_window_size
        self.sliding_window = sliding_window_size if SLIDING in self.layer_types else None
        self.mlp_types = mlp_layer_types or ["sparse" if use_moe else "dense"] * layers
        self.chronos_rope_theta = rope_theta
        self.chronos_rope_scaling = rope_scaling
        self.inference_rope_scaling = inference_rope_scaling
        self.rms_norm_eps = rms_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.lookahead_steps = lookahead_steps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def to_dict(self):
        """As chr-model(5) spells it again."""
        out = super().to_dict()
        for ours, file in (("attention_types", "layer_types"), ("mlp_types", "mlp_layer_types"),
                           ("chronos_rope_theta", "rope_theta"),
                           ("chronos_rope_scaling", "rope_scaling")):
            out[file] = out.pop(ours, getattr(self, ours))
        for key in ("sliding_window", "rope_parameters"):
            out.pop(key, None)
        return out


def inverse_frequencies(config, dims, last):
    """theta^(-2i/dims), and what cosines and sines are multiplied by; stretched as YaRN does
    (arXiv:2309.00071) where the config asks for it. last: the ramp ends at most there."""
    theta = config.chronos_rope_theta
    i = torch.arange(0, dims, 2, dtype=torch.float32)
    freq = 1.0 / theta ** (i / dims)
    o = config.chronos_rope_scaling
    kind = (o or {}).get("rope_type", (o or {}).get("type", "yarn" if o else "default"))
    if not o and config.inference_rope_scaling:
        o, kind = {}, "yarn"
    if kind == "default" or o is None:
        return freq, 1.0
    factor = o.get("factor") or 16
    if kind == "linear":
        return freq / factor, 1.0
    if kind != "yarn" or "mscale" in o:
        raise ValueError(f"rope_scaling is not known here: {o}")
    original = o.get("original_max_position_embeddings") or 2048
    if config.max_position_embeddings / original <= 1:
        return freq, 1.0

    def place(turns):
        return dims * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = max(math.floor(place(o.get("beta_fast") or 32)), 0)
    high = min(math.ceil(place(o.get("beta_slow") or 1)), last)
    ramp = ((torch.arange(dims // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    magnitude = o.get("attention_factor")
    return freq * (1 - ramp + ramp / factor), 1.0 if magnitude is None else magnitude


class ChronosRotary(nn.Module):
    """Cosines and sines of width columns. In format 1 those of MLA are the first of the table of
    whole heads, as the reference has it."""

    def __init__(self, config, width):
        super().__init__()
        self.config, self.width = config, width
        self.dims = config.head_dim if config.chronos_format == 1 else width

    @torch.no_grad()
    def forward(self, x, position_ids):
        freq, magnitude = inverse_frequencies(self.config, self.dims, self.dims // 2 - 1)
        angle = position_ids[..., None].float() * freq.to(x.device)
        angle = torch.cat((angle, angle), dim=-1)[..., : self.width]
        return (angle.cos() * magnitude).to(x.dtype), (angle.sin() * magnitude).to(x.dtype)


def rotate(x, table):
    """x: (B, heads, T, width)."""
    cos, sin = (t.unsqueeze(1) for t in table)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    groups = module.num_key_value_groups
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, : key.shape[-2]]
    share = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    share = nn.functional.dropout(share, p=dropout, training=module.training)
    return torch.matmul(share, value).transpose(1, 2).contiguous(), share


class ChronosRMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def linear(config, rows, cols=None):
    return nn.Linear(cols or config.hidden_size, rows, bias=False)


class ChronosAttention(nn.Module):
    """Grouped queries, all positions or a window of them; or keys and values from a latent."""

    def __init__(self, config, layer_idx):
        super().__init__()
        heads, groups, d = (config.num_attention_heads, config.num_key_value_heads,
                            config.head_dim)
        eps = config.rms_norm_eps
        self.config, self.layer_idx, self.head_dim = config, layer_idx, d
        self.kind = config.attention_types[layer_idx]
        self.num_key_value_groups = heads // groups
        self.scaling = d ** -0.5
        self.attention_dropout = 0.0
        self.is_causal = True
        self.sliding_window = config.sliding_window if self.kind == SLIDING else None
        self.o_proj = nn.Linear(heads * d, config.hidden_size, bias=False)
        if self.kind != MLA:
            self.q_proj, self.k_proj, self.v_proj = (linear(config, n * d)
                                                     for n in (heads, groups, groups))
            self.q_norm, self.k_norm = ChronosRMSNorm(d, eps), ChronosRMSNorm(d, eps)
            return
        r, latent = config.rope_dim, config.kv_latent_dim
        self.q_nope_proj, self.q_rope_proj = (linear(config, heads * w) for w in (d - r, r))
        self.q_nope_norm, self.q_rope_norm = ChronosRMSNorm(d - r, eps), ChronosRMSNorm(r, eps)
        self.kv_down_proj = linear(config, latent)
        self.kv_down_norm = ChronosRMSNorm(latent, eps)
        self.k_nope_proj, self.k_rope_proj, self.v_proj = (
            linear(config, groups * w, latent) for w in (d - r, r, d))

    def _heads(self, x, norm=None, width=None):
        x = x.view(*x.shape[:-1], -1, width or self.head_dim)
        return (norm(x) if norm else x).transpose(1, 2)

    def _project(self, x, tables):
        if self.kind != MLA:
            q = rotate(self._heads(self.q_proj(x), self.q_norm), tables[0])
            k = rotate(self._heads(self.k_proj(x), self.k_norm), tables[0])
            return q, k, self._heads(self.v_proj(x))
        r = self.config.rope_dim
        n = self.head_dim - r
        c = self.kv_down_norm(self.kv_down_proj(x))
        q = torch.cat((self._heads(self.q_nope_proj(x), self.q_nope_norm, n),
                       rotate(self._heads(self.q_rope_proj(x), self.q_rope_norm, r), tables[1])),
                      dim=-1)
        k = torch.cat((self._heads(self.k_nope_proj(c), width=n),
                       rotate(self._heads(self.k_rope_proj(c), width=r), tables[1])), dim=-1)
        return q, k, self._heads(self.v_proj(c))

    def forward(self, hidden_states, attention_mask=None, tables=None, cache=None, **kwargs):
        shape = hidden_states.shape[:-1]
        q, k, v = self._project(hidden_states, tables)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation,
                                                       eager_attention)
        out, _ = attend(self, q, k, v, attention_mask,
                        dropout=self.attention_dropout if self.training else 0.0,
                        scaling=self.scaling, sliding_window=self.sliding_window, **kwargs)
        return self.o_proj(out.reshape(*shape, -1).contiguous())


class ChronosMLP(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.gate_proj, self.up_proj = linear(config, width), linear(config, width)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class ChronosExperts(nn.ModuleList):
    """Called in the way in which other engines call what they put in its place."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for e in top_k_index.unique().tolist():
            row, place = torch.where(top_k_index == e)
            y = self[e](hidden_states[row])
            out = out.index_add(0, row, y * top_k_weights[row, place, None].to(y.dtype))
        return out


class ChronosMoE(nn.Module):
    """The chosen experts, weighted, and the mean of the shared ones, which takes the weight of
    experts that are not available too. These are said in buffers, not in branches, so that a graph
    that was captured or compiled before sees a new mask."""

    def __init__(self, config):
        super().__init__()
        width = config.moe_intermediate_size
        self.top, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = linear(config, config.num_experts)
        self.experts = ChronosExperts(ChronosMLP(config, width)
                                      for _ in range(config.num_experts))
        self.shared_experts = nn.ModuleList(ChronosMLP(config, width)
                                            for _ in range(config.num_shared_experts))
        self.register_buffer("available", torch.ones(config.num_experts, dtype=torch.bool),
                             persistent=False)
        self.register_buffer("instead", torch.arange(config.num_experts), persistent=False)

    @torch.no_grad()
    def set_available(self, mask):
        """mask: (experts) of truth. A choice that is not available goes, with weight 0, to the
        first that is: what is not there is not even read."""
        mask = mask.to(self.available.device)
        own = torch.arange(mask.numel(), device=mask.device)
        self.available.copy_(mask)
        self.instead.copy_(torch.where(mask, own, mask.int().argmax()))

    def forward(self, hidden_states):
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        share = nn.functional.softmax(self.gate(x), dim=-1, dtype=torch.float32)
        weight, chosen = torch.topk(share, self.top, dim=-1)
        if self.renormalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        present = self.available[chosen]
        out = self.experts(x, self.instead[chosen], weight.masked_fill(~present, 0))
        missing = weight.masked_fill(present, 0).sum(-1, keepdim=True)
        for expert in self.shared_experts:
            out = out + expert(x) * ((1 + missing) / len(self.shared_experts)).to(x.dtype)
        return out.view_as(hidden_states)


class ChronosDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = ChronosAttention(config, layer_idx)
        sparse = config.mlp_types[layer_idx] == "sparse"
        self.mlp = ChronosMoE(config) if sparse else ChronosMLP(config, config.intermediate_size)
        self.input_layernorm = ChronosRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ChronosRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask=None, tables=None, cache=None, **kwargs):
        h = hidden_states + self.self_attn(self.input_layernorm(hidden_states),
                                           attention_mask=attention_mask, tables=tables,
                                           cache=cache, **kwargs)
        return h + self.mlp(self.post_attention_layernorm(h))


class ChronosLookahead(nn.Module):
    """From what the first layer gives: which experts this token and those after it will want."""

    def __init__(self, config):
        super().__init__()
        self.steps, self.experts = config.lookahead_steps + 1, config.num_experts
        sparse = config.mlp_types.count("sparse")
        self.layers = sparse if config.chronos_format == 2 else 1
        quarter = config.hidden_size // 4
        self.proj = nn.Sequential(nn.Linear(config.hidden_size, quarter, bias=False), nn.SiLU(),
                                  nn.Linear(quarter, self.steps * self.layers * self.experts,
                                            bias=False))

    def forward(self, hidden_states):
        """(B, T, steps + 1, sparse layers, experts) logits; of one layer in format 1."""
        return self.proj(hidden_states).unflatten(-1, (self.steps, self.layers, self.experts))


@dataclass
class ChronosModelOutput(BaseModelOutputWithPast):
    first_hidden_state: Optional[torch.FloatTensor] = None


@dataclass
class ChronosOutput(CausalLMOutputWithPast):
    lookahead_logits: Optional[torch.FloatTensor] = None


class ChronosPreTrainedModel(PreTrainedModel):
    config_class = ChronosConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChronosDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module):
        """Buffers that are in no file, too: from_pretrained() makes modules without values."""
        super()._init_weights(module)
        if isinstance(module, ChronosMoE):
            initialization.ones_(module.available)
            initialization.copy_(module.instead, torch.arange(module.instead.numel()))


class ChronosModel(ChronosPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChronosDecoderLayer(config, i)
                                    for i in range(config.num_hidden_layers))
        self.norm = ChronosRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ChronosRotary(config, config.head_dim)
        self.rotary_mla = ChronosRotary(config, config.rope_dim)
        if config.lookahead_steps > 0:
            self.lookahead_router = ChronosLookahead(config)
        self.gradient_checkpointing = False
        self.post_init()

    def set_available_experts(self, mask=None):
        """Which experts there are from now on: a list or tensor of truth values, (experts) for all
        layers or (sparse layers, experts); None: all. The weight of one that is chosen and missing
        goes to the shared experts, as chr-generate --on-miss shared has it. Layers of other ranks
        of a pipeline are passed over."""
        sparse = [i for i, kind in enumerate(self.config.mlp_types) if kind == "sparse"]
        shape = len(sparse), self.config.num_experts
        mask = torch.ones(shape) if mask is None else torch.as_tensor(mask)
        if tuple(mask.shape) not in (shape, shape[1:]):
            raise ValueError(f"the mask of experts has the shape {tuple(mask.shape)}, "
                             f"not {shape} or {shape[1:]}")
        if self.config.num_shared_experts == 0 and not mask.bool().all():
            raise ValueError("there is no shared expert to take the place of missing ones")
        for i, row in zip(sparse, mask.bool().expand(shape)):
            if hasattr(self.layers[i], "mlp"):
                self.layers[i].mlp.set_available(row)

    def _masks(self, inputs_embeds, attention_mask, cache, position_ids):
        args = {"config": self.config, "inputs_embeds": inputs_embeds, CACHE: cache,
                "attention_mask": attention_mask, "position_ids": position_ids}
        masks = {FULL: create_causal_mask(**args)}
        if self.config.sliding_window is not None:
            masks[SLIDING] = create_sliding_window_causal_mask(**args)
        return masks

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None,
                inputs_embeds=None, use_cache=None, output_hidden_states=None,
                past_key_values=None, **kwargs):
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = position_ids.unsqueeze(0)
        masks = self._masks(inputs_embeds, attention_mask, cache, position_ids)
        h, first, seen = inputs_embeds, None, [inputs_embeds]
        tables = self.rotary_emb(h, position_ids), self.rotary_mla(h, position_ids)
        for i, layer in enumerate(self.layers):
            h = layer(h, attention_mask=masks[self.config.layer_types[i]], tables=tables,
                      cache=cache, position_ids=position_ids, **kwargs)
            first = h if i == 0 else first
            seen.append(h)
        h = self.norm(h)
        seen[-1] = h
        return ChronosModelOutput(last_hidden_state=h, first_hidden_state=first, **{CACHE: cache},
                                  hidden_states=tuple(seen) if output_hidden_states else None)


class ChronosForCausalLM(ChronosPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config):
        super().__init__(config)
        self.model = ChronosModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_available_experts(self, mask=None):
        self.model.set_available_experts(mask)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None,
                inputs_embeds=None, labels=None, use_cache=None, output_hidden_states=None,
                logits_to_keep=0, output_lookahead=False, past_key_values=None, **kwargs):
        """output_lookahead: lookahead_logits too, of ChronosLookahead."""
        kwargs.pop("return_dict", None)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask,
                         position_ids=position_ids, inputs_embeds=inputs_embeds,
                         cache=past_key_values if cache is None else cache,
                         use_cache=use_cache, output_hidden_states=output_hidden_states, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, keep, :])
        loss = ahead = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        if output_lookahead and self.config.lookahead_steps > 0:
            ahead = self.model.lookahead_router(out.first_hidden_state)
        return ChronosOutput(loss=loss, logits=logits, hidden_states=out.hidden_states,
                             lookahead_logits=ahead, **{CACHE: getattr(out, CACHE)})


class ChronosWorker:
    """For workers of vLLM (--worker-extension-cls modeling_chronos.ChronosWorker):
    collective_rpc("set_available_experts", args=(mask,))."""

    def set_available_experts(self, mask=None):
        self.get_model().model.set_available_experts(mask)
