"""What a run costs, before it starts: parameters, floating-point operations and bytes, by arithmetic alone."""

from gptlab.models.config import DecoderConfig, Feedforward, Norm, NormPlacement, Position

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


def parameter_counts(config: DecoderConfig, vocab_size: int) -> dict[str, int]:
    """Count parameters by part; a tied head counts as embedding, `active` are those that one token uses."""
    c = config
    bias, qkv_bias = int(c.bias), int(c.attention_biased)
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    attention = (c.d_model + qkv_bias) * (queries + 2 * keys) + (queries + bias) * c.d_model
    n_up = 2 if c.feedforward is Feedforward.swiglu else 1
    feedforward = n_up * (c.d_model + bias) * c.ff_width + (c.ff_width + bias) * c.d_model
    norm = c.d_model * (1 + bias if c.norm is Norm.layernorm else 1)
    parts = {
        "embedding": vocab_size * c.d_model,
        "position": c.context_length * c.d_model if c.position is Position.learned else 0,
        "attention": c.n_layer * attention,
        "feedforward": c.n_layer * feedforward,
        "norm": _n_norms(c) * norm,
        "head": 0 if c.tied_head else vocab_size * c.d_model,
    }
    total = sum(parts.values())
    return parts | {"total": total, "active": total}


def flops_per_token(config: DecoderConfig, vocab_size: int, context_length: int) -> dict[str, int]:
    """Floating-point operations of training on one token: three times the forward pass's, a multiply-add being two.

    `per_token_6n` is 6 N, where N leaves out tables that are only looked up (arXiv:2001.08361, section 2.1, with the
    head). `per_token_exact` counts the matrix products, and attention scores in full, masked or not (PaLM,
    arXiv:2204.02311, appendix B), which is the convention for MFU. A banded block counts like a dense one: its band is
    a mask over all scores, so that is also what the hardware does.
    """
    c = config
    counts = parameter_counts(c, vocab_size)
    looked_up = counts["position"] + (0 if c.tied_head else counts["embedding"])
    scores = 2 * context_length * c.n_head * c.head_width * c.n_layer
    return {
        "per_token_6n": 6 * (counts["total"] - looked_up),
        "per_token_exact": 6 * (_hidden_matrices(c) + scores + c.d_model * vocab_size),
    }


def memory_bytes(
    config: DecoderConfig,
    vocab_size: int,
    *,
    micro_batch_size: int,
    context_length: int,
    optimizer: str,
    precision: str,
    n_shards: int = 1,
) -> dict[str, int]:
    """Estimate the bytes that training takes on one device.

    `n_shards` devices divide weights, gradients and optimiser state. Activations are those that fused kernels keep for
    the backward pass, without dropout masks and without activation checkpointing.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision} is unknown here; use one of {', '.join(PRECISIONS)}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer} is unknown here; use one of {', '.join(OPTIMIZERS)}")
    c = config
    weight, copy, activation, stream = PRECISIONS[precision]
    counts = parameter_counts(c, vocab_size)
    n_parameters = counts["total"]
    n_moments = 2 * n_parameters
    if optimizer == "muon":  # one moment for each hidden matrix
        n_moments -= _hidden_matrices(c)

    n_tokens = micro_batch_size * context_length
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    per_layer = 2 * c.d_model + 2 * queries + 2 * keys  # both norms' outputs; q, k, v and what they mix
    if c.qk_norm:
        per_layer += queries + keys
    per_layer += (4 if c.feedforward is Feedforward.swiglu else 2) * c.ff_width
    streams = _n_norms(c) * c.d_model  # what each norm reads
    activations = n_tokens * (c.n_layer * per_layer * activation + streams * stream + c.d_model * activation)

    parts = {
        "weights": -(-n_parameters // n_shards) * (weight + copy),
        "gradients": -(-n_parameters // n_shards) * weight,
        "optimizer": -(-n_moments // n_shards) * weight,
        "activations": activations,
        "logits": min(n_tokens * vocab_size, max(LOGITS_CHUNK, vocab_size)) * (4 + activation),
    }
    return parts | {"total": sum(parts.values())}


def _n_norms(c: DecoderConfig) -> int:
    return 2 * c.n_layer + (1 if c.norm_placement is NormPlacement.pre else 0)


def _hidden_matrices(c: DecoderConfig) -> int:
    """Count the weights of all blocks' matrices."""
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    n_matrices = 3 if c.feedforward is Feedforward.swiglu else 2
    return c.n_layer * c.d_model * (2 * queries + 2 * keys + n_matrices * c.ff_width)
