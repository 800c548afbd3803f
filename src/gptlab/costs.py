"""What a run costs, before it starts: parameters, floating-point operations and bytes, by arithmetic alone."""

from typing import NamedTuple

from gptlab.distributed.config import SHARDED, Layout, Recompute, Sharding, StrategyConfig
from gptlab.errors import UserError
from gptlab.models.config import Feedforward, ModelConfig
from gptlab.models.decoder.config import DecoderConfig, Norm, NormPlacement, Position
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.training.config import FinetuneConfig, Finetuning

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


def parameter_counts(
    config: ModelConfig, vocab_size: int, finetune: FinetuneConfig | None = None, n_class: int | None = None
) -> dict[str, int]:
    """Count parameters by part; a tied head counts as embedding.

    `active` are those that one token uses, `trained` those that are not frozen. Adapters are a part of their own, and
    so is a head for `n_class` classes.
    """
    parts, finetune = PARTS[type(config)](config, vocab_size), finetune or FinetuneConfig()
    if finetune.type is Finetuning.lora:
        parts["adapter"] = _adapters(config, finetune)
    if n_class is not None:
        parts["classes"] = (config.d_model + 1) * n_class
    total = sum(parts.values())
    match finetune.type:
        case Finetuning.full:
            trained = total
        case Finetuning.last_layers:
            trained = _last_parts(config, parts, finetune.n_layer) + parts.get("classes", 0)
        case Finetuning.lora:
            trained = parts["adapter"] + parts.get("classes", 0)
    return parts | {"total": total, "active": total - _idle(config), "trained": trained}


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
        "head": 0 if c.tie_embeddings else vocab_size * c.d_model,
    }


def _encoder_parts(c: EncoderConfig, vocab_size: int) -> dict[str, int]:
    queries, norm, square = c.n_head * c.head_width, 2 * c.d_model, (c.d_model + 1) * c.d_model
    words, sentence = c.heads is not Heads.none, c.heads is Heads.pretraining
    return {
        "embedding": vocab_size * c.d_model,
        "position": (c.context_length + c.n_segment) * c.d_model,
        "attention": c.n_layer * (3 * (c.d_model + 1) * queries + (queries + 1) * c.d_model),
        "feedforward": c.n_layer * _feedforward(c, c.ff_width, 1),
        "norm": _n_norms(c) * norm,
        "pooler": 0 if c.heads is Heads.masked_lm else square,
        "head": words * (square + norm + vocab_size) + sentence * 2 * (c.d_model + 1),
    }


def _encoder_decoder_parts(c: EncoderDecoderConfig, vocab_size: int) -> dict[str, int]:
    n_encoder, n_decoder = c.n_layer, c.decoder_layers
    return {
        "embedding": vocab_size * c.d_model,
        "position": 2 * c.relative_attention_num_buckets * c.n_head,
        "attention": (n_encoder + 2 * n_decoder) * 4 * c.d_model * c.n_head * c.head_width,
        "feedforward": (n_encoder + n_decoder) * _feedforward(c, c.ff_width, 0),
        "norm": (2 * n_encoder + 3 * n_decoder + 2) * c.d_model,
        "head": 0 if c.tie_embeddings else vocab_size * c.d_model,
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


def _adapters(c: ModelConfig, finetune: FinetuneConfig) -> int:
    sizes = _linear_layers(c)
    return finetune.rank * sum((n_in + n_out) * n for n_in, n_out, n in map(sizes.__getitem__, finetune.target_modules))


def _last_parts(c: ModelConfig, parts: dict[str, int], n_layer: int) -> int:
    """Count the parameters of the last blocks and of what comes after them, the table of words left out."""
    if isinstance(c, EncoderDecoderConfig):
        block = 8 * c.d_model * c.n_head * c.head_width + _feedforward(c, c.ff_width, 0) + 3 * c.d_model
        return n_layer * block + c.d_model + parts["head"]
    norm = parts["norm"] // _n_norms(c)
    block = (parts["attention"] + parts["feedforward"]) // c.n_layer + 2 * norm
    n_after = 0 if isinstance(c, EncoderConfig) else _n_norms(c) - 2 * c.n_layer
    return n_layer * block + n_after * norm + parts.get("pooler", 0) + parts["head"]


def _idle(c: ModelConfig) -> int:
    """Count the parameters of experts that a token does not see."""
    if c.n_expert is None:
        return 0
    return c.n_layer * (c.n_expert - c.n_expert_per_token) * _feedforward(c, c.ff_width, int(c.bias))


def flops_per_token(
    config: ModelConfig,
    vocab_size: int,
    context_length: int,
    *,
    target_length: int | None = None,
    scored_fraction: float = 1.0,
    finetune: FinetuneConfig | None = None,
) -> dict[str, float]:
    """Floating-point operations of training on one token, a multiply-add being two.

    Those of the forward pass, as many for the gradients of what it reads, and as many for those of its weights.

    A window is `context_length` tokens, and of an encoder-decoder, whose tokens are those of its encoder,
    `target_length` beside them that its decoder reads (None: as many). Of the positions before the head `scored_fraction`
    are scored.

    `per_token_6n` is 6 N, where N leaves out tables that are only looked up (arXiv:2001.08361, section 2.1, with the
    head) and experts that a token does not see, and weighs parameters that not every token meets by how many do.
    `per_token_exact` counts the matrix products, and attention scores in full, masked or not (PaLM, arXiv:2204.02311,
    appendix B), which is the convention for MFU. A banded block counts like a dense one: its band is a mask over all
    scores, so that is also what the hardware does. Frozen weights have no gradients, and blocks before the first
    trained one no backward pass; it counts as if what it reads had some. `per_token_6n` is as if all were trained.
    """
    if target_length is not None and not isinstance(config, EncoderDecoderConfig):
        raise UserError(f"target_length={target_length} is of an encoder-decoder; leave it out")
    targets = (target_length or context_length) / context_length
    seen, products = PRODUCTS[type(config)](config, vocab_size, context_length, targets, scored_fraction)
    return {"per_token_6n": 6 * seen, "per_token_exact": 2 * _trained_products(config, products, finetune, targets)}


class _Products(NamedTuple):
    """Multiply-adds of a token's forward pass."""

    stacks: list[tuple[int, float, float]]  # how many blocks, and with all their matrices and scores
    words: float = 0  # with the matrix that makes scores of words, which may be the table
    other: float = 0  # of other heads


def _trained_products(c: ModelConfig, p: _Products, finetune: FinetuneConfig | None, targets: float) -> float:
    """Multiply-adds of both passes."""
    finetune = finetune or FinetuneConfig()
    blocks = sum(matrices + scores for _, matrices, scores in p.stacks)
    match finetune.type:
        case Finetuning.full:
            return 3 * (blocks + p.words + p.other)
        case Finetuning.last_layers:
            n_layer, matrices, scores = p.stacks[-1]
            trained = finetune.n_layer / n_layer * (matrices + scores)
            frozen_words = isinstance(c, EncoderConfig) or c.tie_embeddings  # the table of words is
            return blocks + 2 * trained + (2 if frozen_words else 3) * p.words + 3 * p.other
        case Finetuning.lora:
            reached = p.stacks if _in_encoder(finetune) else p.stacks[-1:]
            back = sum(matrices + 2 * scores for _, matrices, scores in reached)
            return blocks + back + 2 * (p.words + p.other) + 3 * _adapter_products(c, finetune, targets)


def _in_encoder(finetune: FinetuneConfig) -> bool:
    """Whether the encoder of an encoder-decoder has adapters too."""
    return any(not name.startswith("cross.") for name in finetune.target_modules)


def _adapter_products(c: ModelConfig, finetune: FinetuneConfig, targets: float) -> float:
    sizes, total = _linear_layers(c), 0.0
    for name in finetune.target_modules:
        n_in, n_out, n = sizes[name]
        if isinstance(c, EncoderDecoderConfig):  # keys and values that the decoder looks at are of the encoder's tokens
            n_encoder = 0 if name.startswith("cross.") else c.n_layer
            n = n_encoder + (n - n_encoder) * (1 if name in ("cross.k", "cross.v") else targets)
        total += finetune.rank * (n_in + n_out) * n
    return total


def _decoder_products(c: DecoderConfig, vocab_size: int, length: int, _, share: float) -> tuple[float, _Products]:
    """The parameters that a token meets, and what is computed with them; likewise below."""
    counts, head = parameter_counts(c, vocab_size), c.d_model * vocab_size
    blocks = counts["active"] - counts["position"] - counts["embedding"] - counts["head"]
    scores = 2 * length * c.n_head * c.head_width * c.n_layer
    stack = (c.n_layer, _hidden_matrices(c, c.n_expert_per_token), scores)
    return blocks + share * head, _Products([stack], words=share * head)


def _encoder_products(c: EncoderConfig, vocab_size: int, length: int, _, share: float) -> tuple[float, _Products]:
    counts, square = parameter_counts(c, vocab_size), c.d_model * c.d_model
    words, sentence = c.heads is not Heads.none, 2 if c.heads is Heads.pretraining else 0
    pooler = 0 if c.heads is Heads.masked_lm else square
    # What reads a whole text does so once a window.
    other = words * share * square + (pooler + sentence * c.d_model) / length
    seen = counts["attention"] + counts["feedforward"] + counts["norm"]
    seen += share * (counts["head"] - sentence * (c.d_model + 1) + words * counts["embedding"])
    seen += (counts["pooler"] + sentence * (c.d_model + 1)) / length
    scores = 2 * length * c.n_head * c.head_width * c.n_layer
    stack = (c.n_layer, _hidden_matrices(c, None), scores)
    return seen, _Products([stack], words=words * share * c.d_model * vocab_size, other=other)


def _encoder_decoder_products(
    c: EncoderDecoderConfig, vocab_size: int, length: int, targets: float, share: float
) -> tuple[float, _Products]:
    """`targets` are tokens of the decoder for each token."""
    queries, feedforward = c.n_head * c.head_width, _feedforward(c, c.ff_width, 0)
    attention, head = 4 * c.d_model * queries, share * c.d_model * vocab_size
    encoder, decoder = c.n_layer * (attention + feedforward), c.decoder_layers * (2 * attention + feedforward)
    norms = (2 * c.n_layer + 1) * c.d_model + targets * (3 * c.decoder_layers + 1) * c.d_model
    # Keys and values of what the decoder looks at are made of the encoder's tokens.
    crossed = targets * decoder + (1 - targets) * c.decoder_layers * attention / 2
    scores = 2 * length * queries
    stacks = [
        (c.n_layer, encoder, scores * c.n_layer),
        (c.decoder_layers, crossed, scores * (targets**2 + targets) * c.decoder_layers),
    ]
    return encoder + targets * (decoder + head) + norms, _Products(stacks, words=targets * head)


PRODUCTS = {
    DecoderConfig: _decoder_products,
    EncoderConfig: _encoder_products,
    EncoderDecoderConfig: _encoder_decoder_products,
}


def memory_bytes(
    config: ModelConfig,
    vocab_size: int,
    *,
    micro_batch_size: int,
    context_length: int,
    optimizer: str,
    precision: str,
    strategy: StrategyConfig | None = None,
    layout: Layout | None = None,
    finetune: FinetuneConfig | None = None,
    target_length: int | None = None,
    scored_fraction: float = 1.0,
) -> dict[str, int]:
    """Estimate the bytes that training takes on one device of those that `layout` arranges.

    `gathered` are weights that are divided and for a while whole. Activations are those that fused kernels keep for the
    backward pass, without dropout masks; on a CPU, which has no such kernel for learned biases, an encoder-decoder
    keeps its attention's weights beside them. `target_length` and `scored_fraction` are those of `flops_per_token`.
    """
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} is unknown here; use one of {', '.join(PRECISIONS)}")
    if optimizer not in OPTIMIZERS:
        raise UserError(f"optimizer={optimizer} is unknown here; use one of {', '.join(OPTIMIZERS)}")
    c, strategy, layout = config, strategy or StrategyConfig(), layout or Layout()
    finetune = finetune or FinetuneConfig()
    weight, copy, activation, stream = PRECISIONS[precision]
    counts, hidden = parameter_counts(c, vocab_size, finetune), _hidden_matrices(c, c.n_expert)
    n_parameters = counts["total"] - hidden + hidden // layout.tensor
    matrices = _trained_matrices(c, hidden, finetune)
    n_trained = counts["trained"] - matrices + matrices // layout.tensor
    n_moments = 2 * n_trained - (matrices // layout.tensor if optimizer == "muon" else 0)  # of a matrix it keeps one

    n_gathered = 0
    if strategy.type is Sharding.zero2:
        n_gathered = n_parameters
    elif strategy.type in SHARDED:  # what the head and the embeddings need, and two blocks: the next is fetched ahead
        blocks = hidden // layout.tensor + counts.get("adapter", 0)
        n_gathered = n_parameters - blocks + 2 * blocks // _linear_layers(c)["attn.q"][2]
    n_shards = layout.shards
    n_optimizer_shards = layout.replicas if strategy.type is Sharding.zero1 else n_shards

    targets = context_length if target_length is None else target_length
    n_read = targets if isinstance(c, EncoderDecoderConfig) else context_length  # by the head
    activations = _activation_bytes(
        c, _blocks(c, context_length, targets, finetune), strategy.activation_checkpointing, activation, stream
    )
    if isinstance(c, EncoderConfig) and c.heads is not Heads.none:  # the head's layer, its nonlinearity and its norm
        activations += scored_fraction * n_read * 4 * c.d_model * activation
    n_scored = round(micro_batch_size * scored_fraction * n_read)
    parts = {
        "weights": -(-n_parameters // n_shards) * (weight + copy),
        "gradients": -(-n_trained // n_shards) * weight,
        "optimizer": -(-n_moments // n_optimizer_shards) * weight,
        "gathered": n_gathered * (copy or weight) if n_shards > 1 else 0,
        "activations": round(micro_batch_size * activations),
        "logits": min(n_scored * vocab_size, max(LOGITS_CHUNK, vocab_size)) * (4 + activation),
    }
    if strategy.cpu_offload:
        parts |= dict.fromkeys(("weights", "gradients", "optimizer"), 0)  # in the host's memory
    parts = {name: size for name, size in parts.items() if size or name != "gathered"}
    return parts | {"total": sum(parts.values())}


class _Blocks(NamedTuple):
    """Blocks that are alike, and what each keeps of a window for the backward pass."""

    n_layer: int
    n_token: int
    n_sublayer: int
    products: float  # channels of a token that are products of matrices or attention
    rest: float  # other ones
    beside: float = 0  # products that another sequence's tokens leave here, of all channels


def _blocks(c: ModelConfig, length: int, targets: int, finetune: FinetuneConfig) -> list[_Blocks]:
    """The blocks in which there is something to train, or before which there is."""
    n_last = finetune.n_layer if finetune.type is Finetuning.last_layers else None
    products, rest = _kept_channels(c)
    if not isinstance(c, EncoderDecoderConfig):
        return [_Blocks(c.n_layer if n_last is None else n_last, length, 2, products, rest)]
    queries = c.n_head * c.head_width
    cross = {"products": products + 2 * queries, "rest": rest + c.d_model, "beside": length * 2 * queries}
    decoder = _Blocks(c.decoder_layers if n_last is None else n_last, targets, 3, **cross)
    return [_Blocks(c.n_layer if n_last is None else 0, length, 2, products, rest), decoder]


def _kept_channels(c: ModelConfig) -> tuple[float, float]:
    """What attention to a sequence itself and a feedforward keep of a token: products, and the rest."""
    queries, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    gates = 2 if c.feedforward.gated else 1
    # A rectifier needs its output alone, which the next matrix keeps anyway.
    before = 0 if c.feedforward is Feedforward.relu else gates
    width, copies, answers = c.ff_width, 0, 0
    if c.n_expert is not None:
        copies = c.n_expert_per_token * (c.capacity_factor or 1)  # of a token, on their way to experts
        answers = c.n_expert_per_token  # the weights' gradients need them
        width = copies * c.ff_width + _shared_width(c)
    # q, k, v, what they mix, and what goes into the nonlinearity
    products = 2 * queries + 2 * keys + before * width + answers * c.d_model
    rest = (2 + copies) * c.d_model + gates * width  # norms' and nonlinearity's outputs
    return products, rest + (queries + keys if isinstance(c, DecoderConfig) and c.qk_norm else 0)


def _activation_bytes(
    c: ModelConfig, blocks: list[_Blocks], recompute: Recompute, activation: int, stream: int
) -> float:
    """What one window leaves for the backward pass."""
    d, kept, whole = c.d_model, 0, []
    for b in blocks:
        whole.append(
            b.n_token * ((b.products + b.rest) * activation + b.n_sublayer * d * stream) + b.beside * activation
        )
        products = b.n_token * (b.products + b.n_sublayer * d) + b.beside
        kept += (
            b.n_layer
            * {
                Recompute.none: whole[-1],
                Recompute.full: b.n_token * d * stream,  # its input
                Recompute.selective: products * activation + b.n_token * d * stream,
            }[recompute]
        )
    again = 0 if recompute is Recompute.none else max(whole)  # the block that is being computed once more
    n_alone = 1 if isinstance(c, EncoderDecoderConfig) else _n_norms(c) - 2 * c.n_layer  # norms outside of blocks
    return kept + again + sum(b.n_token for b in blocks) * d * (activation + stream * n_alone)


def _n_norms(c: DecoderConfig | EncoderConfig) -> int:
    return 2 * c.n_layer + (0 if isinstance(c, DecoderConfig) and c.norm_placement is NormPlacement.post else 1)


def _trained_matrices(c: ModelConfig, hidden: int, finetune: FinetuneConfig) -> int:
    """Count those weights of the blocks' matrices that are trained, adapters included."""
    if finetune.type is Finetuning.lora:
        return _adapters(c, finetune)
    if finetune.type is Finetuning.full:
        return hidden
    if isinstance(c, EncoderDecoderConfig):
        return finetune.n_layer * (8 * c.d_model * c.n_head * c.head_width + _feedforward(c, c.ff_width, 0))
    return finetune.n_layer * hidden // c.n_layer


def _shared_width(c: DecoderConfig) -> int:
    return (c.n_shared_expert or 0) * c.ff_width


def _hidden_matrices(c: ModelConfig, n_expert: int | None) -> int:
    """Count the weights of all blocks' matrices, with so many experts in each where there are any."""
    matrices = sum(n_in * n_out * n for n_in, n_out, n in _linear_layers(c).values())
    if c.n_expert is None:
        return matrices
    n_matrices = 3 if c.feedforward.gated else 2
    return matrices + c.n_layer * c.d_model * (n_matrices * n_expert * c.ff_width + c.n_expert)  # with the router


def _linear_layers(c: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """The linear layers of the blocks by name: their inputs, their outputs, and how many blocks have one."""
    heads, keys = c.n_head * c.head_width, c.kv_heads * c.head_width
    sizes = {"attn.q": (c.d_model, heads), "attn.k": (c.d_model, keys), "attn.v": (c.d_model, keys)}
    sizes |= {"attn.out": (heads, c.d_model)}

    def feedforward(name: str, width: int) -> dict[str, tuple[int, int]]:
        into = ("gate", "up") if c.feedforward.gated else ("up",)
        return {f"{name}.{part}": (c.d_model, width) for part in into} | {f"{name}.down": (width, c.d_model)}

    if c.n_expert is None:
        sizes |= feedforward("ffn", c.ff_width)
    elif c.n_shared_expert:
        sizes |= feedforward("ffn.shared", c.n_shared_expert * c.ff_width)
    if not isinstance(c, EncoderDecoderConfig):
        return {name: (*size, c.n_layer) for name, size in sizes.items()}
    own = {name: (*size, c.n_layer + c.decoder_layers) for name, size in sizes.items()}
    cross = {name.replace("attn.", "cross."): size for name, size in sizes.items() if name.startswith("attn.")}
    return own | {name: (*size, c.decoder_layers) for name, size in cross.items()}
