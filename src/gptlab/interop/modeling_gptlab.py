"""Decoders and encoders trained with gptlab, for transformers 5: this file needs torch and transformers alone.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)

`gptlab convert` writes it beside the weights of models that no architecture of transformers holds. The keys of
config.json and the names of parameters are gptlab's. In shapes, B is the batch, T the tokens that are read, S all
tokens so far, D the width, H heads, G key-value heads, K a head's width, F the feedforward's width, E experts, V the
vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput, can_return_tuple

# Versions of transformers differ in what an output calls the cache.
CACHE_FIELD = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"

# The keys of config.json, with the values of those that it leaves out.
DEFAULTS = {
    "type": "decoder",  # or encoder
    "vocab_size": 50257,
    "context_length": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_kv_head": None,  # fewer than n_head: grouped-query attention
    "d_model": 768,
    "d_head": None,
    "d_ff": None,
    "feedforward": "gelu",  # the tanh form; or gelu_exact, relu, relu2, geglu, swiglu
    "position": "learned",  # or sinusoidal, rotary, none
    "rope_theta": 10_000.0,
    "rope_type": "default",  # or linear, yarn, llama3
    "rope_factor": None,
    "rope_original_context": None,
    "rope_beta_fast": None,
    "rope_beta_slow": None,
    "rope_attention_factor": None,
    "norm": "layernorm",  # or rmsnorm
    "norm_eps": 1e-5,
    "norm_placement": "pre",  # or post
    "attention_pattern": "dense",  # or alternating (every second block has a window), sliding_window (every block)
    "attention_window": None,  # tokens that such a block sees, its own included
    "bias": True,  # of linear layers and LayerNorm
    "qkv_bias": None,  # None: bias
    "qk_norm": False,  # RMSNorm without a gain on queries and keys
    "attention_scale": None,  # of the scores; None: d_head^-0.5
    "logit_softcap": None,
    "tie_embeddings": True,
    "n_expert": None,  # None: one feedforward
    "n_expert_per_token": 2,
    "n_shared_expert": None,
    "router_softmax": "after",  # the choice of experts, or before it
    "n_segment": 2,  # of an encoder
    "heads": "pretraining",  # of an encoder; or masked_lm, none
    "dropout": 0.0,
    "dropout_embedding": None,  # None: dropout, likewise below
    "dropout_attention": None,
    "dropout_residual": None,
    "init_std": 0.02,  # of weights that are not in the file, such as a new class head
}


class GptlabConfig(PretrainedConfig):
    """config.json, under gptlab's keys and, in Python, under those of transformers as well."""

    model_type = "gptlab"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "head_dim": "d_head",
        "max_position_embeddings": "context_length",
        "initializer_range": "init_std",
        "tie_word_embeddings": "tie_embeddings",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    def __init__(self, **options):
        for key, default in DEFAULTS.items():
            setattr(self, key, options.pop(key, default))
        if self.n_kv_head is None:
            self.n_kv_head = self.n_head
        if self.d_head is None:
            self.d_head = self.d_model // self.n_head
        if self.d_ff is None:
            self.d_ff = 4 * self.d_model
        if self.qkv_bias is None:
            self.qkv_bias = self.bias
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):  # some versions know no default
            options.setdefault(key, None)
        super().__init__(**options)

    def dropout_at(self, place):
        """The rate at "embedding", "attention" or "residual"."""
        rate = getattr(self, f"dropout_{place}")
        return self.dropout if rate is None else rate

    def window_of(self, block):
        """Tokens that a block sees, its own included; None where it sees all before."""
        sliding = self.attention_pattern == "sliding_window" or (
            self.attention_pattern == "alternating" and block % 2 == 1
        )
        return self.attention_window if sliding else None


class CausalMask:
    """Which keys T queries attend to, which follow `n_before` cached tokens, as arguments of SDPA.

    `attention_mask` (B, n_before + T) is True on real tokens; None: all are.
    """

    def __init__(self, n_tokens, n_before, attention_mask, device):
        self.n_tokens, self.n_before, self.attention_mask, self.device = n_tokens, n_before, attention_mask, device
        self.made = {}  # by the number of keys and the window: blocks share them

    def __call__(self, n_keys, window):
        if self.attention_mask is None and (window is None or window >= n_keys):
            if self.n_tokens == n_keys:
                return {"is_causal": True}
            if self.n_tokens == 1 and isinstance(self.n_before, int) and n_keys == self.n_before + 1:
                return {}
        if (n_keys, window) not in self.made:
            queries = self.n_before + torch.arange(self.n_tokens, device=self.device)  # (T)
            distance = queries[:, None] - torch.arange(n_keys, device=self.device)  # (T, S)
            allowed = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            if self.attention_mask is not None:
                real = F.pad(
                    self.attention_mask, (0, n_keys - self.attention_mask.shape[1])
                )  # a static cache is longer
                # Padding attends to itself: a softmax over nothing is NaN, which would spread.
                allowed = ((allowed & real[:, None, :]) | (distance == 0))[:, None]  # (B, 1, T, S)
            self.made[n_keys, window] = {"attn_mask": allowed}
        return self.made[n_keys, window]


def frequencies_of(config, device):
    """Radians per token of each pair of channels: (K / 2,) (arXiv:2104.09864), changed for a longer context."""
    c, width = config, config.d_head
    own = c.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    if c.rope_type == "linear":  # arXiv:2306.15595
        return own / c.rope_factor
    if c.rope_type == "llama3":  # arXiv:2407.21783
        turns = c.rope_original_context * own / (2 * math.pi)
        kept = ((turns - c.rope_beta_slow) / (c.rope_beta_fast - c.rope_beta_slow)).clamp(0, 1)
        return own * kept + own / c.rope_factor * (1 - kept)
    if c.rope_type == "yarn":  # arXiv:2309.00071
        ends = (
            len(own) * math.log(c.rope_original_context / (2 * math.pi * turns)) / math.log(c.rope_theta)
            for turns in (c.rope_beta_fast, c.rope_beta_slow)
        )
        first, last = (rounded(end) for rounded, end in zip((math.floor, math.ceil), ends, strict=True))
        first, last = max(first, 0), min(last, width - 1)
        slowed = (torch.arange(len(own), dtype=own.dtype, device=device) - first) / max(last - first, 0.001)
        slowed = slowed.clamp(0, 1)
        return own * (1 - slowed) + own / c.rope_factor * slowed
    return own


def rotation_of(positions, config):
    """Cosines and sines of position times frequency: positions (B, T) -> (B, T, 1, K) each."""
    device = positions.device if positions.device.type != "mps" else "cpu"  # which has no float64
    angles = positions.to(device, torch.float64)[..., None, None] * frequencies_of(config, device)  # (B, T, 1, K / 2)
    amplitude = config.rope_attention_factor or 1.0
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    turned = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return tuple(table.float().to(positions.device) for table in turned)


def sinusoids(positions, width):
    """Sine and cosine of position times frequency 10000^(-2i/D), in turn: positions (B, T) -> (B, T, D)."""
    device = positions.device if positions.device.type != "mps" else "cpu"  # which has no float64
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=device) / (width + width % 2)
    angles = positions.to(device, torch.float64)[..., None] * 10_000.0**-exponents  # (B, T, D / 2)
    table = torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)[..., :width]
    return table.float().to(positions.device)


def rotate(x, rotation):
    """Turn channel i with channel i + K/2 by their position's angle: x (B, T, H, K)."""
    cos, sin = rotation
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


class Attention(nn.Module):
    """H query heads that share G key and value heads (arXiv:2305.13245)."""

    def __init__(self, config, block):
        super().__init__()
        c = config
        self.block, self.window = block, c.window_of(block)
        self.n_head, self.n_kv_head, self.d_head = c.n_head, c.n_kv_head, c.d_head
        self.qk_norm_eps = c.norm_eps if c.qk_norm else None
        self.scale, self.dropout = c.attention_scale, c.dropout_at("attention")
        self.q = nn.Linear(c.d_model, c.n_head * c.d_head, bias=c.qkv_bias)
        self.k = nn.Linear(c.d_model, c.n_kv_head * c.d_head, bias=c.qkv_bias)
        self.v = nn.Linear(c.d_model, c.n_kv_head * c.d_head, bias=c.qkv_bias)
        self.out = nn.Linear(c.n_head * c.d_head, c.d_model, bias=c.bias)

    def forward(self, x, mask, rotation=None, cache=None):
        """Mix positions: x (B, T, D) -> (B, T, D)."""
        q = self.q(x).unflatten(-1, (self.n_head, self.d_head))  # (B, T, H, K)
        k = self.k(x).unflatten(-1, (self.n_kv_head, self.d_head))  # (B, T, G, K)
        v = self.v(x).unflatten(-1, (self.n_kv_head, self.d_head))
        if self.qk_norm_eps is not None:
            q, k = (F.rms_norm(part, (self.d_head,), eps=self.qk_norm_eps) for part in (q, k))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.block)  # (B, G, S, K)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            **mask(k.shape[2], self.window),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=self.n_kv_head != self.n_head,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The position-wise sublayer; `linear` makes its layers, and those of experts are called with an expert's index."""

    def __init__(self, config, width, linear: Callable[..., nn.Module] = nn.Linear):
        super().__init__()
        self.kind = config.feedforward
        if self.kind in ("geglu", "swiglu"):
            self.gate = linear(config.d_model, width, bias=config.bias)
        self.up = linear(config.d_model, width, bias=config.bias)
        self.down = linear(width, config.d_model, bias=config.bias)

    def forward(self, x, *expert):
        up = self.up(x, *expert)
        if self.kind == "gelu":
            inner = F.gelu(up, approximate="tanh")
        elif self.kind == "gelu_exact":
            inner = F.gelu(up)
        elif self.kind == "relu":
            inner = F.relu(up)
        elif self.kind == "relu2":
            inner = F.relu(up).square()
        elif self.kind == "geglu":
            inner = F.gelu(self.gate(x, *expert), approximate="tanh") * up
        elif self.kind == "swiglu":
            inner = F.silu(self.gate(x, *expert)) * up
        else:
            raise ValueError(f"feedforward={self.kind} is unknown")
        return self.down(inner, *expert)


class ExpertLinear(nn.Module):
    """A linear layer for each of E experts: weight (E, out, in), bias (E, out)."""

    def __init__(self, n_expert, n_in, n_out, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_expert, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_expert, n_out)) if bias else None

    def forward(self, x, expert):
        return F.linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])


class MixtureOfExperts(nn.Module):
    """A router that sends each token to some of E feedforwards (arXiv:1701.06538), and shared ones that read all.

    No token is dropped, in training either, and the router's balancing losses are not part of the loss.
    """

    def __init__(self, config):
        super().__init__()
        self.n_active, self.softmax = config.n_expert_per_token, config.router_softmax
        self.router = nn.Linear(config.d_model, config.n_expert, bias=False)
        self.experts = FeedForward(config, config.d_ff, partial(ExpertLinear, config.n_expert))
        shared = config.n_shared_expert
        self.shared = FeedForward(config, shared * config.d_ff) if shared else None

    def forward(self, x):
        tokens = x.flatten(0, 1)  # (N, D)
        logits = F.linear(tokens.float(), self.router.weight.float())  # (N, E)
        if self.softmax == "before":
            weights, chosen = logits.softmax(-1).topk(self.n_active)  # (N, k)
        else:
            highest, chosen = logits.topk(self.n_active)
            weights = highest.softmax(-1)
        mixed = torch.zeros_like(tokens)
        for expert in range(logits.shape[1]):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            answers = self.experts(tokens[token], expert) * weights[token, place, None].to(x.dtype)
            mixed = mixed.index_add(0, token, answers)
        mixed = mixed.view(x.shape)
        return mixed if self.shared is None else mixed + self.shared(x)


class Block(nn.Module):
    """Attention and the feedforward, each added to the residual stream."""

    def __init__(self, config, block):
        super().__init__()
        self.placement = config.norm_placement
        self.norm1, self.attn = norm_of(config), Attention(config, block)
        self.norm2 = norm_of(config)
        self.ffn = FeedForward(config, config.d_ff) if config.n_expert is None else MixtureOfExperts(config)
        self.drop = nn.Dropout(config.dropout_at("residual"))

    def forward(self, x, **attention):
        if self.placement == "post":
            x = self.norm1(x + self.drop(self.attn(x, **attention)))
            return self.norm2(x + self.drop(self.ffn(x)))
        x = x + self.drop(self.attn(self.norm1(x), **attention))
        return x + self.drop(self.ffn(self.norm2(x)))


def norm_of(config):
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class GptlabPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model."""

    config_class = GptlabConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        if config._attn_implementation not in (None, "sdpa"):
            raise ValueError(
                f"attn_implementation={config._attn_implementation} is not supported: attention is PyTorch's "
                "scaled_dot_product_attention; leave it out, or use sdpa"
            )

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ExpertLinear):
            nn.init.normal_(module.weight, std=self.config.init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, MaskedLMHead):
            nn.init.zeros_(module.bias)

    def resize_token_embeddings(self, *args, **options):
        embeddings = super().resize_token_embeddings(*args, **options)
        head = getattr(self, "mlm", None)
        if isinstance(head, MaskedLMHead):  # whose bias has an entry for each token
            old, new = head.bias.data, head.bias.new_zeros(embeddings.num_embeddings)
            n = min(len(new), len(old))
            new[:n] = old[:n]
            head.bias = nn.Parameter(new)
        return embeddings

    def get_input_embeddings(self):
        return self._base.tok_emb

    def set_input_embeddings(self, value):
        self._base.tok_emb = value

    @property
    def _base(self):
        return getattr(self, self.base_model_prefix, self)

    def _refuse(self, options):
        """Refuse what would otherwise be ignored; generate() of some versions passes keys that mean nothing here."""
        if options.get("output_attentions"):
            raise ValueError("output_attentions=True is not supported: the scores are never formed")

    def _reported(self, states, asked):
        """The states before, between and after the blocks, where they are asked for."""
        return tuple(states) if (self.config.output_hidden_states if asked is None else asked) else None


class GptlabDecoder(GptlabPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config):
        super().__init__(config)
        c = config
        self.tok_emb = nn.Embedding(c.vocab_size, c.d_model)
        self.pos_emb = nn.Embedding(c.context_length, c.d_model) if c.position == "learned" else None
        self.drop = nn.Dropout(c.dropout_at("embedding"))
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.n_layer))
        self.final_norm = norm_of(c) if c.norm_placement == "pre" else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        past_key_values=None,  # what versions before 5.24 call `cache`
        **options,
    ):
        """Hidden states (B, T, D) of tokens (B, T) that follow those in the cache.

        attention_mask (B, S) is 1 on real tokens and 0 on padding, on either side. Without `position_ids` each text's
        first real token has position 0.
        """
        self._refuse(options)
        c, cache = self.config, past_key_values if cache is None else cache
        x = self.tok_emb(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        n_tokens, device = x.shape[1], x.device
        if cache is None and (use_cache or (use_cache is None and not self.training)):
            cache = DynamicCache()
        n_before = 0 if cache is None else cache.get_seq_length()
        if isinstance(n_before, Tensor):  # a static cache's own counter, which the blocks advance
            n_before = n_before.clone()
        if attention_mask is not None:
            if attention_mask.ndim != 2:
                raise ValueError(f"attention_mask has {attention_mask.ndim} dimensions; give (batch, tokens so far)")
            attention_mask = attention_mask.bool()
            if not torch.compiler.is_compiling() and attention_mask.all():
                attention_mask = None
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -n_tokens:]
        elif position_ids is None:
            position_ids = (n_before + torch.arange(n_tokens, device=device))[None]
        if self.pos_emb is not None:
            if isinstance(n_before, int) and n_before + n_tokens > c.context_length <= position_ids.max():
                raise ValueError(
                    f"{n_before + n_tokens} tokens do not fit context_length={c.context_length}: positions are learned"
                )
            x = x + self.pos_emb(position_ids)
        elif c.position == "sinusoidal":
            x = x * math.sqrt(c.d_model) + sinusoids(position_ids, c.d_model).to(x.dtype)
        x = self.drop(x)
        rotation = rotation_of(position_ids, c) if c.position == "rotary" else None
        mask = CausalMask(n_tokens, n_before, attention_mask, device)
        states = [x]
        for block in self.blocks:
            x = block(x, mask=mask, rotation=rotation, cache=cache)
            states.append(x)
        if self.final_norm is not None:
            x = states[-1] = self.final_norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=self._reported(states, output_hidden_states),
            **{CACHE_FIELD: cache},  # pyright: ignore[reportArgumentType]
        )


class GptlabForCausalLM(GptlabPreTrainedModel, GenerationMixin):
    """The decoder with its head over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.tok_emb.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"^class_head\."]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = GptlabDecoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @staticmethod
    def create_masks_for_generate(attention_mask=None, **options):
        """The mask of tokens as it is: `CausalMask` knows each block's window."""
        return attention_mask

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        past_key_values=None,
        **options,
    ):
        """Logits (B, T, V), of the last `logits_to_keep` tokens where given, and the loss of `labels` (B, T)."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **options,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept])
        softcap = self.config.logit_softcap
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        loss = None
        if labels is not None:
            count = {key: options[key] for key in ("num_items_in_batch",) if key in options}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **count)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=found.hidden_states, **{CACHE_FIELD: getattr(found, CACHE_FIELD)}
        )


class GptlabEncoder(GptlabPreTrainedModel):
    """The encoder, with its pooler where it has one."""

    def __init__(self, config, add_pooling_layer=True):
        super().__init__(config)
        c = config
        self.tok_emb = nn.Embedding(c.vocab_size, c.d_model)
        self.pos_emb = nn.Embedding(c.context_length, c.d_model)
        self.seg_emb = nn.Embedding(c.n_segment, c.d_model)
        self.emb_norm = norm_of(c)
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.n_layer))
        self.pooler = nn.Linear(c.d_model, c.d_model) if add_pooling_layer and c.heads != "masked_lm" else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        inputs_embeds=None,
        output_hidden_states=None,
        **options,
    ):
        """Hidden states (B, T, D) and the pooled one (B, D); token_type_ids (B, T) are segments, None: all 0."""
        self._refuse(options)
        x = self.tok_emb(input_ids) if inputs_embeds is None else inputs_embeds
        n_tokens = x.shape[1]
        if n_tokens > self.config.context_length:
            raise ValueError(f"{n_tokens} tokens do not fit context_length={self.config.context_length}")
        segments = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        x = x + self.seg_emb(segments if token_type_ids is None else token_type_ids)
        x = self.drop(self.emb_norm(x + self.pos_emb(torch.arange(n_tokens, device=x.device))))
        real = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        states = [x]
        for block in self.blocks:
            x = block(x, mask=lambda n_keys, window: {"attn_mask": real})
            states.append(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else torch.tanh(self.pooler(x[:, 0])),
            hidden_states=self._reported(states, output_hidden_states),
        )


class MaskedLMHead(nn.Module):
    """The transform between the last block and the token embedding; `bias` is added to the logits."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = norm_of(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, tok_emb):
        """Logits (B, T, V) of states (B, T, D), by the token embedding (V, D)."""
        return F.linear(self.norm(F.gelu(self.dense(x))), tok_emb, self.bias)


def loss_of(logits, labels):
    """The cross-entropy of logits (..., C), None without labels; -100 is no label."""
    return None if labels is None else F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


class GptlabForMaskedLM(GptlabPreTrainedModel):
    """The encoder with a token for each position."""

    _keys_to_ignore_on_load_unexpected = [r"^(nsp|class_head|model\.pooler)\."]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = GptlabEncoder(config, add_pooling_layer=False)
        self.mlm = MaskedLMHead(config)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **options):
        """Logits (B, T, V), and the loss of `labels` (B, T), which are -100 where nothing is masked."""
        found = self.model(input_ids, attention_mask, token_type_ids, return_dict=True, **options)
        logits = self.mlm(found.last_hidden_state, self.model.tok_emb.weight)
        return MaskedLMOutput(loss=loss_of(logits, labels), logits=logits, hidden_states=found.hidden_states)


@dataclass
class PreTrainingOutput(ModelOutput):
    """What an encoder is trained for: logits of tokens (B, T, V), and whether segment 1 does not follow 0 (B, 2)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple | None = None


class GptlabForPreTraining(GptlabPreTrainedModel):
    """The encoder with a token for each position, and whether the second segment follows the first."""

    _keys_to_ignore_on_load_unexpected = [r"^class_head\."]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = GptlabEncoder(config)
        self.mlm = MaskedLMHead(config)
        self.nsp = nn.Linear(config.d_model, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        labels=None,
        next_sentence_label=None,
        **options,
    ):
        """Both logits, and the sum of the losses whose labels are given."""
        found = self.model(input_ids, attention_mask, token_type_ids, return_dict=True, **options)
        tokens = self.mlm(found.last_hidden_state, self.model.tok_emb.weight)
        follows = self.nsp(found.pooler_output)
        both = loss_of(tokens, labels), loss_of(follows, next_sentence_label)
        losses = [loss for loss in both if loss is not None]
        return PreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=tokens,
            seq_relationship_logits=follows,
            hidden_states=found.hidden_states,
        )


class GptlabForSequenceClassification(GptlabPreTrainedModel):
    """A class for each text: from a decoder's last real token, or from an encoder's pooled state."""

    _keys_to_ignore_on_load_unexpected = [r"^(lm_head|mlm|nsp)\."]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        if config.type == "encoder" and config.heads == "masked_lm":
            raise ValueError("an encoder with heads=masked_lm has no pooler, which a class is read from")
        self.num_labels = config.num_labels
        self.model = GptlabEncoder(config) if config.type == "encoder" else GptlabDecoder(config)
        self.drop = nn.Dropout(config.dropout)
        self.class_head = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, labels=None, **options):
        """Logits (B, C), and the loss of `labels` (B); without a mask, tokens equal to pad_token_id are padding."""
        pad = self.config.pad_token_id
        if attention_mask is None and pad is not None and input_ids is not None:
            attention_mask = (input_ids != pad).long()
        if self.config.type == "decoder":
            options.setdefault("use_cache", False)
            options.pop("token_type_ids", None)
        found = self.model(input_ids, attention_mask, return_dict=True, **options)
        states = found.last_hidden_state
        if self.config.type == "encoder":
            pooled = found.pooler_output
        elif attention_mask is None:
            pooled = states[:, -1]
        else:
            places = torch.arange(states.shape[1], device=states.device)
            last = (places * attention_mask).argmax(-1)  # of the real tokens, wherever the padding is
            pooled = states[torch.arange(len(states), device=states.device), last]
        logits = self.class_head(self.drop(pooled))
        return SequenceClassifierOutput(loss=loss_of(logits, labels), logits=logits, hidden_states=found.hidden_states)
