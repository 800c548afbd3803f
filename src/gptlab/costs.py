"""What a run costs, before it starts: parameters, floating-point operations and bytes, by arithmetic alone."""

from gptlab.models.config import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Feedforward,
    Heads,
    ModelConfig,
    Norm,
    NormPlacement,
    Position,
)
from gptlab.training.config import SHARDED, Layout, Recompute, Sharding, StrategyConfig

LOGITS_CHUNK = 2**27  # at most so many logits exist at a time on a GPU (nn/loss.py)

# Bytes of a weight, of its copy that autocast keeps, of an activation, and of the residual stream.
PRECISIONS = {
    "32-true": (4, 0, 4, 4),
    "16-mixed": (4, 2, 2, 4),
    "bf16-mixed": (4, 2, 2, 4),
    "16-true": (2, 0, 2, 2),
    "bf16-true": (2, 0, 2, 2),
}
OPTIMIZERS = ("adamw", "muon")


def parameter_counts(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Count parameters by part; a tied head counts as embedding, `active` are those that one token uses."""
    parts = PARTS[type(config)](config, vocab_size)
    total = sum(parts.values())
    return parts | {"total": total, "active": total - _idle(config)}


def _decoder_parts(c: DecoderConfig, vocab_size: int) -> dict[str, int]:
    bias, qkv_bias = int(c.bias), int(c.attention_biased)
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    attention = (c.d_model + qkv_bias) * (queries + 2 * keys) + (queries + bias) * c.d_model
    feedforward = _feedforward(c, c.ff_width, bias)
    if c.n_expert is not None:
        shared = _feedforward(c, _shared_width(c), bias) if c.n_shared_expert else 0
        feedforward = c.d_model * c.n_expert + c.n_expert * feedforward + shared  # with the router
    norm = c.d_model * (1 + bias if c.norm is Norm.layernorm else 1)
    return {
        "embedding": vocab_size * c.d_model,
        "position": c.context_length * c.d_model if c.position is Position.learned else 0,
        "attention": c.n_layer * attention,
        "feedforward": c.n_layer * feedforward,
        "norm": _n_norms(c) * norm,
        "head": 0 if c.tied_head else vocab_size * c.d_model,
    }


def _encoder_parts(c: EncoderConfig, vocab_size: int) -> dict[str, int]:
    queries, norm, square = c.n_head * c.head_width, 2 * c.d_model, (c.d_model + 1) * c.d_model
    words, sentence = c.heads is not Heads.none, c.heads is Heads.pretraining
    return {
        "embedding": vocab_size * c.d_model,
        "position": (c.context_length + c.n_segment) * c.d_model,
        "attention": c.n_layer * (3 * (c.d_model + 1) * queries + (queries + 1) * c.d_model),
        "feedforward": c.n_layer * _feedforward(c, c.ff_width, 1),
        "norm": (2 * c.n_layer + 1) * norm,
        "pooler": 0 if c.heads is Heads.masked_lm else square,
        "head": words * (square + norm + vocab_size) + sentence * 2 * (c.d_model + 1),
    }


def _encoder_decoder_parts(c: EncoderDecoderConfig, vocab_size: int) -> dict[str, int]:
    n_encoder, n_decoder = c.n_layer, c.decoder_layers
    return {
        "embedding": vocab_size * c.d_model,
        "position": 2 * c.n_position_bucket * c.n_head,
        "attention": (n_encoder + 2 * n_decoder) * 4 * c.d_model * c.n_head * c.head_width,
        "feedforward": (n_encoder + n_decoder) * _feedforward(c, c.ff_width, 0),
        "norm": (2 * n_encoder + 3 * n_decoder + 2) * c.d_model,
        "head": 0 if c.tied_head else vocab_size * c.d_model,
    }


PARTS = {
    DecoderConfig: _decoder_parts,
    EncoderConfig: _encoder_parts,
    EncoderDecoderConfig: _encoder_decoder_parts,
}


def _feedforward(c: ModelConfig, width: int, bias: int) -> int:
    """Count the parameters of one feed-forward sublayer."""
    n_up = 2 if c.feedforward.gated else 1
    return n_up * (c.d_model + bias) * width + (width + bias) * c.d_model


def _idle(c: ModelConfig) -> int:
    """Count the parameters of experts that a token does not see."""
    if c.n_expert is None:
        return 0
    return c.n_layer * (c.n_expert - c.n_expert_active) * _feedforward(c, c.ff_width, int(c.bias))


def flops_per_token(config: DecoderConfig, vocab_size: int, context_length: int) -> dict[str, int]:
    """Floating-point operations of training on one token: three times the forward pass's, a multiply-add being two.

    `per_token_6n` is 6 N, where N leaves out tables that are only looked up (arXiv:2001.08361, section 2.1, with the
    head) and experts that a token does not see. `per_token_exact` counts the matrix products, and attention scores in
    full, masked or not (PaLM, arXiv:2204.02311, appendix B), which is the convention for MFU. A banded block counts
    like a dense one: its band is a mask over all scores, so that is also what the hardware does.
    """
    c = config
    counts = parameter_counts(c, vocab_size)
    matrices = _hidden_matrices(c, c.n_expert_active)
    looked_up = counts["position"] + (0 if c.tied_head else counts["embedding"])
    scores = 2 * context_length * c.n_head * c.head_width * c.n_layer
    return {
        "per_token_6n": 6 * (counts["active"] - looked_up),
        "per_token_exact": 6 * (matrices + scores + c.d_model * vocab_size),
    }


def memory_bytes(
    config: DecoderConfig,
    vocab_size: int,
    *,
    micro_batch_size: int,
    context_length: int,
    optimizer: str,
    precision: str,
    strategy: StrategyConfig | None = None,
    layout: Layout | None = None,
) -> dict[str, int]:
    """Estimate the bytes that training takes on one device of those that `layout` arranges.

    `gathered` are weights that are divided and for a while whole. Activations are those that fused kernels keep for the
    backward pass, without dropout masks.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision} is unknown here; use one of {', '.join(PRECISIONS)}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer} is unknown here; use one of {', '.join(OPTIMIZERS)}")
    c, strategy, layout = config, strategy or StrategyConfig(), layout or Layout()
    weight, copy, activation, stream = PRECISIONS[precision]
    hidden = _hidden_matrices(c, c.n_expert)
    n_parameters = parameter_counts(c, vocab_size)["total"] - hidden + hidden // layout.tensor
    n_moments = 2 * n_parameters - (hidden // layout.tensor if optimizer == "muon" else 0)  # of a matrix it keeps one

    n_gathered = 0
    if strategy.name is Sharding.zero2:
        n_gathered = n_parameters
    elif strategy.name in SHARDED:  # what the head and the embeddings need, and two blocks: the next is fetched ahead
        blocks = hidden // layout.tensor
        n_gathered = n_parameters - blocks + 2 * blocks // c.n_layer
    n_shards = layout.shards
    n_optimizer_shards = layout.replicas if strategy.name is Sharding.zero1 else n_shards

    n_tokens = micro_batch_size * context_length
    parts = {
        "weights": -(-n_parameters // n_shards) * (weight + copy),
        "gradients": -(-n_parameters // n_shards) * weight,
        "optimizer": -(-n_moments // n_optimizer_shards) * weight,
        "gathered": n_gathered * (copy or weight) if n_shards > 1 else 0,
        "activations": n_tokens * _activation_bytes(c, strategy.activation_checkpointing, activation, stream),
        "logits": min(n_tokens * vocab_size, max(LOGITS_CHUNK, vocab_size)) * (4 + activation),
    }
    if strategy.cpu_offload:
        parts |= dict.fromkeys(("weights", "gradients", "optimizer"), 0)  # in the host's memory
    parts = {name: size for name, size in parts.items() if size or name != "gathered"}
    return parts | {"total": sum(parts.values())}


def _activation_bytes(c: DecoderConfig, recompute: Recompute, activation: int, stream: int) -> int:
    """What one token leaves for the backward pass."""
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    gates = 2 if c.feedforward.gated else 1
    # A rectifier needs its output alone, which the next matrix keeps anyway.
    before = 0 if c.feedforward is Feedforward.relu else gates
    width, copies, answers = c.ff_width, 0, 0
    if c.n_expert is not None:
        copies = c.n_expert_active * (c.capacity_factor or 1)  # of a token, on their way to experts
        answers = c.n_expert_active  # the weights' gradients need them
        width = copies * c.ff_width + _shared_width(c)
    # q, k, v, what they mix, and what goes into the nonlinearity
    products = 2 * queries + 2 * keys + before * width + answers * c.d_model
    rest = (2 + copies) * c.d_model + gates * width  # norms' and nonlinearity's outputs
    rest += queries + keys if c.qk_norm else 0
    whole = (products + rest) * activation + 2 * c.d_model * stream
    kept = {
        Recompute.none: whole,
        Recompute.full: c.d_model * stream,  # its input
        Recompute.selective: (products + 2 * c.d_model) * activation + c.d_model * stream,
    }[recompute]
    again = 0 if recompute is Recompute.none else whole  # the block that is being computed once more
    last = c.d_model * (activation + stream * (_n_norms(c) - 2 * c.n_layer))
    return c.n_layer * kept + again + last


def _n_norms(c: DecoderConfig) -> int:
    return 2 * c.n_layer + (1 if c.norm_placement is NormPlacement.pre else 0)


def _shared_width(c: DecoderConfig) -> int:
    return (c.n_shared_expert or 0) * c.ff_width


def _hidden_matrices(c: DecoderConfig, n_expert: int | None) -> int:
    """Count the weights of all blocks' matrices, with so many experts in each where there are any."""
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    n_matrices = 3 if c.feedforward.gated else 2
    width, router = c.ff_width, 0
    if c.n_expert is not None:
        width, router = n_expert * c.ff_width + _shared_width(c), c.n_expert
    return c.n_layer * c.d_model * (2 * queries + 2 * keys + n_matrices * width + router)
