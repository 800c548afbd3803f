from copy import deepcopy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from gptlab.models.build import build_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import (
    AttentionPattern,
    DecoderConfig,
    Init,
    Norm,
    NormPlacement,
    Position,
    RopeType,
    RouterSoftmax,
)
from gptlab.nn.loss import linear_cross_entropy
from gptlab.nn.tied import TiedWeight

VOCAB_SIZE = 23
TINY = DecoderConfig(n_layer=2, n_head=4, d_model=24, context_length=12, init_std=0.3)
OPTIONS = [
    *({"position": value} for value in Position),
    *({"norm": value} for value in Norm),
    *({"feedforward": value} for value in Feedforward),
    *({"init": value} for value in Init),
    {"n_kv_head": 2, "position": Position.rotary},
    {"n_kv_head": 1, "qk_norm": True},
    {"qk_norm": True, "position": Position.rotary, "norm": Norm.rmsnorm},
    {"attention_scale": 1.0},
    {"d_head": 10, "d_ff": 17},
    {"bias": False},
    {"bias": False, "qkv_bias": True},
    {"qkv_bias": False},
    {"tie_embeddings": False, "logit_softcap": 0.5},
    {"norm_placement": NormPlacement.post},
    {"norm_placement": NormPlacement.post, "norm": Norm.rmsnorm, "bias": False, "position": Position.rotary},
    {"attention_pattern": AttentionPattern.alternating, "attention_window": 3},
    *({"n_expert": 4, "feedforward": value} for value in Feedforward),
    {
        "n_expert": 5,
        "n_expert_per_token": 3,
        "n_shared_expert": 1,
        "router_softmax": RouterSoftmax.before,
        "bias": False,
    },
    {"n_expert": 4, "capacity_factor": 2.0, "d_ff": 17},
    {"token_shift": True, "position": Position.rotary},
]
each_option = pytest.mark.parametrize("option", OPTIONS, ids=str)


def tokens(batch=3, length=12, seed=0):
    return torch.randint(VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))


def perturbed(model, std=0.3):
    """Draw every parameter, so that no zero and no symmetry hides an error."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)
    return model


@each_option
def test_a_changed_token_leaves_earlier_outputs_alone_and_changes_later_ones(option):
    model = perturbed(build_model(replace(TINY, **option), VOCAB_SIZE, seed=0)).eval()
    before = tokens()
    for place in (0, 5, 11):
        after = before.clone()
        after[:, place] = (after[:, place] + 1) % VOCAB_SIZE
        a, b = model(before), model(after)
        change = (a - b).abs().amax((0, 2))  # (T)
        assert (change[:place] <= 1e-6).all()
        assert (change[place:] > 1e-6).all()


@each_option
def test_every_parameter_gets_a_gradient(option):
    model = perturbed(build_model(replace(TINY, **option), VOCAB_SIZE, seed=0))
    linear_cross_entropy(model.hidden_states(tokens()), model.head, tokens(seed=1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # a bias shared by all keys moves all scores of a query alike, which the softmax does not see
        assert parameter.grad.abs().max() > 1e-7 or name.endswith("attn.k.bias"), name


@pytest.mark.parametrize("position", [Position.rotary, Position.none])
def test_rotary_and_no_positions_depend_on_distances_only(position):
    model = perturbed(build_model(replace(TINY, n_layer=1, position=position), VOCAB_SIZE, seed=0))
    attention = model.blocks[0].attn
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(2))
    rotary = model.rotary
    rotations = (
        [None] * 2 if rotary is None else [tuple(t[a : a + 5] for t in (rotary.cos, rotary.sin)) for a in (0, 6)]
    )
    a, b = (attention(x, rotation=rotation, causal=True) for rotation in rotations)
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_order_matters_with_each_kind_of_position_but_none():
    for position in Position:
        model = perturbed(build_model(replace(TINY, n_layer=1, position=position), VOCAB_SIZE, seed=0))
        swapped = tokens()
        swapped[:, :2] = swapped[:, :2].flip(1)
        different = (model(tokens())[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-4
        assert different == (position is not Position.none)


@pytest.mark.parametrize(
    "option", [{}, {"n_kv_head": 2}, {"qkv_bias": False}, {"qk_norm": True, "position": Position.rotary}], ids=str
)
def test_the_fused_projection_is_three_projections(option):
    model = perturbed(build_model(replace(TINY, **option), VOCAB_SIZE, seed=0))
    results = []
    for hooked in (False, True):
        for block in model.blocks if hooked else ():
            block.attn.q.register_forward_hook(lambda layer, args, result: None)
        model.zero_grad()
        logits = model(tokens())
        logits.square().sum().backward()
        results.append([logits, *(p.grad.clone() for p in model.parameters())])
    largest = max(b.abs().max() for b in results[1][1:])
    for a, b in zip(*results, strict=True):  # the gradient of a key's bias is zero but for rounding
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-6 * largest


def test_a_scale_of_the_scores_is_one_of_the_queries():
    usual, unscaled = (
        perturbed(build_model(replace(TINY, attention_scale=scale), VOCAB_SIZE, seed=0)) for scale in (None, 1.0)
    )
    assert (usual(tokens()) - unscaled(tokens())).abs().max() > 0.1
    with torch.no_grad():
        for block in unscaled.blocks:
            block.attn.q.weight *= 6**-0.5  # heads are 6 wide
            block.attn.q.bias *= 6**-0.5
    assert torch.allclose(usual(tokens()), unscaled(tokens()), rtol=1e-5, atol=1e-5)


def test_logit_softcap():
    plain = perturbed(build_model(TINY, VOCAB_SIZE, seed=0))
    capped = perturbed(build_model(replace(TINY, logit_softcap=2.0), VOCAB_SIZE, seed=0))
    logits = plain(tokens())
    assert logits.abs().max() > 4
    assert torch.allclose(capped(tokens()), 2 * torch.tanh(logits / 2), rtol=1e-5, atol=1e-6)
    losses = [linear_cross_entropy(m.hidden_states(tokens()), m.head, tokens(seed=1)) for m in (plain, capped)]
    expected = F.cross_entropy(capped(tokens()).flatten(0, 1), tokens(seed=1).flatten(), reduction="sum")
    assert losses[0] != losses[1] and torch.allclose(losses[1], expected)


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
def test_dropout_by_place(place):
    still = perturbed(build_model(TINY, VOCAB_SIZE, seed=0))
    model = perturbed(build_model(replace(TINY, **{f"dropout_{place}": 0.5}), VOCAB_SIZE, seed=0))
    everywhere = build_model(replace(TINY, dropout=0.5, **{f"dropout_{place}": 0.0}), VOCAB_SIZE, seed=0)
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    rates += [block.attn.dropout for block in model.blocks]
    assert sorted(set(rates)) == [0.0, 0.5]
    assert (model.drop.p, model.blocks[0].drop.p, model.blocks[0].attn.dropout) == tuple(
        0.5 if name == place else 0.0 for name in ("embedding", "residual", "attention")
    )
    assert (everywhere.drop.p, everywhere.blocks[0].drop.p, everywhere.blocks[0].attn.dropout) == tuple(
        0.0 if name == place else 0.5 for name in ("embedding", "residual", "attention")
    )
    torch.manual_seed(0)
    first, second = model(tokens()), model(tokens())
    assert not torch.allclose(first, second)
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))
    assert torch.equal(model(tokens()), still.eval()(tokens()))


def test_dropout_keeps_the_expected_share():
    model = build_model(replace(TINY, dropout_embedding=0.25, d_model=512, n_head=1), VOCAB_SIZE, seed=0)
    seen = []
    model.drop.register_forward_hook(lambda module, args, result: seen.append((args[0], result)))
    torch.manual_seed(0)
    model(tokens())
    before, after = seen[0]
    kept = after != 0
    assert 0.72 < kept.float().mean() < 0.78
    assert torch.allclose(after[kept], before[kept] / 0.75)


def test_too_many_tokens_are_refused_for_each_kind_of_position():
    for position in Position:
        model = build_model(replace(TINY, position=position), VOCAB_SIZE, seed=0)
        with pytest.raises(
            ValueError, match=r"13 tokens do not fit model\.context_length=12; .* model\.context_length=13"
        ):
            model.hidden_states(tokens(length=13))


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_names(tied):
    model = build_model(
        DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4, tie_embeddings=tied), VOCAB_SIZE, seed=0
    )
    expected = ["tok_emb.weight", "pos_emb.weight"]
    for module in ("norm1", "attn.q", "attn.k", "attn.v", "attn.out", "norm2", "ffn.up", "ffn.down"):
        expected += [f"blocks.0.{module}.weight", f"blocks.0.{module}.bias"]
    expected += ["final_norm.weight", "final_norm.bias"] + ([] if tied else ["lm_head.weight"])
    assert list(model.state_dict()) == expected
    assert (model.head.weight is model.tok_emb.weight) == tied


def test_rotary_tables_stay_exact_and_out_of_the_state():
    config = replace(TINY, position=Position.rotary)
    model = build_model(config, VOCAB_SIZE, seed=0)
    assert not any("rotary" in name for name in model.state_dict())
    cos = model.rotary.cos.clone()
    angles = torch.arange(12)[:, None] * 10_000.0 ** (-torch.arange(0, 6, 2) / 6)
    assert torch.allclose(cos[:, 0], angles.cos().repeat(1, 2), atol=1e-6)
    model.to(torch.bfloat16)
    assert model.rotary.cos.dtype == torch.float32 and torch.equal(model.rotary.cos, cos)
    assert model(tokens()).dtype == torch.bfloat16
    with torch.inference_mode():
        model.float().to("meta")
    model.to_empty(device="cpu")
    assert torch.equal(model.rotary.cos, cos)


def test_rope_theta_and_norm_eps_are_obeyed():
    base = replace(TINY, position=Position.rotary, norm=Norm.rmsnorm)
    logits = [
        perturbed(build_model(replace(base, **option), VOCAB_SIZE, seed=0))(tokens())
        for option in ({}, {"rope_theta": 100.0}, {"norm_eps": 0.1})
    ]
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])


@each_option
def test_one_batch_can_be_overfitted(option):
    model = build_model(replace(TINY, **{"init_std": 0.1, **option}), VOCAB_SIZE, seed=0)
    inputs, targets = tokens(2, 8), tokens(2, 8, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        total = linear_cross_entropy(model.hidden_states(inputs), model.head, targets) / targets.numel()
        total.backward()
        optimizer.step()
    # Without positions a repeated prefix is all there is, and capped logits stop at log(1 + 22 / e).
    floor = 2.3 if "logit_softcap" in option else 0.1
    assert total < floor


def test_post_norm_is_the_papers_formula():
    model = perturbed(build_model(replace(TINY, norm_placement=NormPlacement.post), VOCAB_SIZE, seed=0)).eval()
    x = model.tok_emb(tokens()) + model.pos_emb(torch.arange(12))
    for block in model.blocks:
        x = block.norm1(x + block.attn(x, causal=True))
        x = block.norm2(x + block.ffn(x))
    assert torch.equal(model.hidden_states(tokens()), x)
    assert model.final_norm is None and not any("final_norm" in name for name in model.state_dict())


@pytest.mark.parametrize("pattern", [AttentionPattern.sliding_window, AttentionPattern.alternating])
def test_a_sliding_window_block_attends_to_its_window(pattern):
    config = replace(TINY, attention_pattern=pattern, attention_window=4)
    model = perturbed(build_model(config, VOCAB_SIZE, seed=0)).eval()
    reach = []
    for block in range(2):
        x = torch.randn(1, 12, 24, generator=torch.Generator().manual_seed(2))
        changed = x.clone()
        changed[0, 2] = -x[0, 2]
        seen = []
        hook = model.blocks[block].attn.register_forward_hook(
            lambda module, args, result, seen=seen: seen.append(result)
        )
        for value in (x, changed):
            model.blocks[block].register_forward_pre_hook(lambda module, args, value=value: (value,))
            model(tokens(batch=1))
        hook.remove()
        difference = (seen[0] - seen[1]).abs().amax((0, 2))
        reach.append((difference > 1e-6).nonzero().flatten().tolist())
    banded, dense = [2, 3, 4, 5], list(range(2, 12))
    assert reach == [banded if pattern is AttentionPattern.sliding_window else dense, banded]


def test_a_window_as_long_as_the_text_changes_nothing():
    dense = perturbed(build_model(TINY, VOCAB_SIZE, seed=0))
    options = {"attention_pattern": AttentionPattern.sliding_window, "attention_window": 12}
    banded = perturbed(build_model(replace(TINY, **options), VOCAB_SIZE, seed=0))
    assert torch.equal(dense(tokens()), banded(tokens()))
    shorter = perturbed(build_model(replace(TINY, **options | {"attention_window": 11}), VOCAB_SIZE, seed=0))
    change = (dense(tokens()) - shorter(tokens())).abs().amax((0, 2))
    assert change[:11].max() <= 1e-5 and change[11] > 1e-5


def test_parameter_names_of_experts():
    sizes = {"n_layer": 1, "n_head": 2, "d_model": 8, "context_length": 4, "d_ff": 6, "bias": False}
    config = DecoderConfig(**sizes, n_expert=3, n_shared_expert=2, feedforward=Feedforward.swiglu)
    shapes = {n: tuple(p.shape) for n, p in build_model(config, VOCAB_SIZE, seed=0).blocks[0].ffn.state_dict().items()}
    assert shapes == {
        "router.weight": (3, 8),
        **{f"experts.{name}.weight": (3, 6, 8) for name in ("gate", "up")},
        "experts.down.weight": (3, 8, 6),
        **{f"shared.{name}.weight": (12, 8) for name in ("gate", "up")},
        "shared.down.weight": (8, 12),
    }
    biased = build_model(replace(config, bias=True), VOCAB_SIZE, seed=0).blocks[0].ffn.state_dict()
    assert biased["experts.up.bias"].shape == (3, 6) and "router.bias" not in biased


def test_one_expert_is_the_dense_model_bit_for_bit():
    dense = perturbed(build_model(TINY, VOCAB_SIZE, seed=0))
    only = build_model(replace(TINY, n_expert=1, n_expert_per_token=1), VOCAB_SIZE, seed=0)
    names = {name: name.replace(".ffn.", ".ffn.experts.") for name in dense.state_dict()}
    own = only.state_dict()
    only.load_state_dict(own | {names[n]: v.view_as(own[names[n]]) for n, v in dense.state_dict().items()})
    for model in (dense, only):
        linear_cross_entropy(model.hidden_states(tokens()), model.head, tokens(seed=1)).backward()
    assert torch.equal(dense(tokens()), only(tokens()))
    for name, parameter in dense.named_parameters():
        assert torch.equal(only.get_parameter(names[name]).grad.view_as(parameter), parameter.grad), name


def test_auxiliary_losses_are_those_of_the_newest_forward_pass_in_training():
    model = perturbed(
        build_model(replace(TINY, n_expert=4, router_aux_loss_coef=0.5, router_z_loss_coef=0.25), VOCAB_SIZE, seed=0)
    )
    model.hidden_states(tokens(seed=1))
    model.hidden_states(tokens())
    first = model.auxiliary
    terms = {name: value.item() for name, value in first.terms.items()}
    assert tuple(terms) == model.config.auxiliary_terms
    assert first.loss.item() == pytest.approx(0.5 * terms["balance_loss"] + 0.25 * terms["z_loss"], rel=1e-6)
    model.hidden_states(tokens())
    assert torch.equal(model.auxiliary.loss, first.loss), "passes do not add up"
    assert model.eval().auxiliary is None
    assert build_model(TINY, VOCAB_SIZE, seed=0).auxiliary is None


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_with_experts_a_step_does_not_depend_on_its_micro_batches(capacity_factor, padded):
    """The sums of all losses and of all gradients, in micro-batches of one, of two and of all sequences."""
    config = replace(TINY, n_expert=4, capacity_factor=capacity_factor, router_aux_loss_coef=0.5)
    model = perturbed(build_model(config, VOCAB_SIZE, seed=0))
    inputs, targets = tokens(4), tokens(4, seed=1)
    mask = torch.arange(12) < torch.tensor([12, 5, 9, 2])[:, None] if padded else torch.ones(4, 12, dtype=torch.bool)
    targets = targets.masked_fill(~mask, -100)
    found = []
    for size in (1, 2, 4):
        model.zero_grad()
        loss, terms = 0.0, dict.fromkeys(config.auxiliary_terms, 0.0)
        for start in range(0, 4, size):
            part = slice(start, start + size)
            hidden_states = model.hidden_states(inputs[part], attention_mask=mask[part] if padded else None)
            value = linear_cross_entropy(hidden_states, model.head, targets[part]) + 100 * model.auxiliary.loss
            value.backward()
            loss += value.item()
            terms = {name: terms[name] + value.item() for name, value in model.auxiliary.terms.items()}
        found.append((loss, terms, [p.grad.clone() for p in model.parameters()]))
    assert (found[0][1]["dropped_token_fraction"] > 0) == (capacity_factor is not None)
    for loss, terms, gradients in found[:-1]:
        assert loss == pytest.approx(found[-1][0], rel=1e-6)
        assert terms == pytest.approx(found[-1][1], rel=1e-6)
        largest = max(g.abs().max() for g in gradients)
        assert all((a - b).abs().max() <= 1e-6 * largest for a, b in zip(gradients, found[-1][2], strict=True))


def test_padding_before_a_token_is_refused():
    model = build_model(TINY, VOCAB_SIZE, seed=0)
    with pytest.raises(ValueError, match="pad sequences at their end"):
        model.hidden_states(tokens(1, 3), attention_mask=torch.tensor([[False, True, True]]))


CONFINED = [
    *({"position": value} for value in Position),
    {"position": Position.rotary, "rope_type": RopeType.yarn, "rope_factor": 2.0, "n_kv_head": 2, "qk_norm": True},
    {"attention_pattern": AttentionPattern.alternating, "attention_window": 2},
    {"attention_pattern": AttentionPattern.sliding_window, "attention_window": 3, "position": Position.rotary},
    {"norm_placement": NormPlacement.post},
    {"n_expert": 4, "n_shared_expert": 1},
    {"token_shift": True, "position": Position.rotary},
]


@pytest.mark.parametrize("option", CONFINED, ids=str)
def test_a_document_among_others_is_as_it_is_alone(option):
    model = perturbed(build_model(replace(TINY, **option), VOCAB_SIZE, seed=0)).eval()
    lengths = [[5, 1, 6], [4, 8], [12]]
    ids = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])
    packed = tokens()
    logits = model(packed, document_ids=ids)
    loss = logits.square().sum()
    together = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    alone, parts = 0.0, []
    for row, sizes in zip(packed, lengths, strict=True):
        for document in row.split(sizes):
            parts.append(model(document[None]))
            alone = alone + parts[-1].square().sum()
    assert torch.allclose(logits.flatten(0, 1), torch.cat([part[0] for part in parts]), atol=1e-5)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    expected = torch.autograd.grad(alone, list(model.parameters()), allow_unused=True)
    largest = max(value.abs().max() for value in expected if value is not None)
    for mine, theirs in zip(together, expected, strict=True):
        if theirs is not None:
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6 * largest)
    cached = []
    for row, sizes in zip(packed, lengths, strict=True):  # one token at a time, as in generation
        for document in row.split(sizes):
            cache = model.new_cache(1, len(document))
            cached += [model.head.logits(model.hidden_states(t[None, None], cache=cache))[0] for t in document]
    assert torch.allclose(logits.flatten(0, 1), torch.cat(cached), atol=1e-5)


def test_documents_and_a_cache_are_not_for_one_call():
    model = build_model(TINY, VOCAB_SIZE, seed=0)
    with pytest.raises(ValueError, match="document_ids with a cache"):
        model.hidden_states(tokens(), document_ids=tokens(), cache=model.new_cache(3, 12))


@pytest.mark.parametrize("n_passes", [1, 2])
def test_a_tied_embedding_gets_the_gradients_of_lookup_and_head(n_passes):
    model = build_model(replace(TINY, tie_embeddings=True), VOCAB_SIZE, seed=0)
    weight, targets = model.tok_emb.weight, tokens(seed=1)
    for seed in range(n_passes):
        linear_cross_entropy(model.hidden_states(tokens(seed=seed)), model.head, targets, chunk_size=5).backward()
    untied = build_model(replace(TINY, tie_embeddings=False), VOCAB_SIZE, seed=0)
    with torch.no_grad():
        for name, value in untied.named_parameters():
            value.copy_(model.get_parameter("tok_emb.weight" if name == "lm_head.weight" else name))
    for seed in range(n_passes):
        F.cross_entropy(untied(tokens(seed=seed)).flatten(0, 1), targets.flatten(), reduction="sum").backward()
    expected = untied.tok_emb.weight.grad + untied.lm_head.weight.grad
    assert weight.grad.layout is torch.strided
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_tied_embedding_whose_head_is_not_used_gets_a_dense_gradient_too():
    model = build_model(replace(TINY, tie_embeddings=True), VOCAB_SIZE, seed=0)
    other = build_model(replace(TINY, tie_embeddings=False), VOCAB_SIZE, seed=0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            other.get_parameter(name).copy_(value)
    for each in (model, other):
        each.hidden_states(tokens()).square().sum().backward()
    assert all(p.grad is None or p.grad.layout is torch.strided for p in model.parameters())
    torch.testing.assert_close(model.tok_emb.weight.grad, other.tok_emb.weight.grad)


def backward_allocations(model) -> list[int]:
    """Bytes of each allocation in the backward pass of a loss in several chunks."""
    loss = linear_cross_entropy(model.hidden_states(tokens()), model.head, tokens(seed=1), chunk_size=5)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        (loss / 36).backward()
    return [event.cpu_memory_usage for event in found.events()]


def test_both_gradients_of_a_tied_embedding_are_added_in_place():
    model = build_model(replace(TINY, tie_embeddings=True), 5000, seed=0)
    n_bytes = 4 * model.tok_emb.weight.numel()
    assert max(backward_allocations(model)) < n_bytes / 2, "the head's gradient was allocated with the loss"
    with patch.object(TiedWeight, "helps", lambda weight: False):
        assert max(backward_allocations(model)) >= n_bytes, "what this is about"


def test_a_frequent_token_loses_no_precision():
    model = build_model(replace(TINY, n_layer=1, context_length=512), VOCAB_SIZE, seed=0)
    often, targets = torch.zeros(4, 512, dtype=torch.int64), torch.randint(1, VOCAB_SIZE, (4, 512))
    exact = deepcopy(model).double()
    for each in (model, exact):
        linear_cross_entropy(each.hidden_states(often), each.head, targets, chunk_size=300).backward()
    expected = exact.tok_emb.weight.grad
    assert (model.tok_emb.weight.grad.double() - expected).norm() < 1e-5 * expected.norm()
    # Of many additions to one bfloat16 the last would be lost: the sum is made apart.
    assert not TiedWeight.helps(model.bfloat16().tok_emb.weight)


def test_a_weight_that_changes_between_lookup_and_head_is_used_as_it_is_then():
    model = build_model(replace(TINY, tie_embeddings=True), VOCAB_SIZE, seed=0)
    hidden = model.hidden_states(tokens())
    with torch.no_grad():
        model.tok_emb.weight.add_(1.0)
    assert model.head.weight is model.tok_emb.weight, "updated in place"
    hidden = model.hidden_states(tokens())
    model.tok_emb.weight = torch.nn.Parameter(model.tok_emb.weight.data)
    linear_cross_entropy(hidden.detach(), model.head, tokens(seed=1), chunk_size=5).backward()
    assert model.tok_emb.weight.grad is not None, "replaced by another parameter over the same values"
    model.hidden_states(tokens())
    assert model.double().head.weight.dtype is torch.float64, "cast"
    deepcopy(model)


def test_a_tied_model_may_be_differentiated_as_a_function():
    model = build_model(replace(TINY, tie_embeddings=True), VOCAB_SIZE, seed=0)
    parameters = dict(model.named_parameters())

    def loss(values):
        return torch.func.functional_call(model, values, (tokens(),)).square().mean()

    found = torch.func.grad(loss)(parameters)["tok_emb.weight"]
    model(tokens()).square().mean().backward()
    torch.testing.assert_close(found, model.tok_emb.weight.grad)
