"""Which parameters get which treatment."""

from dataclasses import replace

import pytest
import torch

from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.config import Parametrization
from gptlab.models.decoder.config import DecoderConfig
from gptlab.training.config import AdamWConfig, Decay, FinetuneConfig, Finetuning, MuonConfig, OptimizerConfig
from gptlab.training.finetune import prepare_finetuning
from gptlab.training.muon import orthogonalize
from gptlab.training.optimizers import build_optimizer, retune
from gptlab.training.step import set_lr

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return build_model(DecoderConfig(n_layer=2, n_head=2, d_model=8, context_length=4), 11, seed=0)


def treated(model, config):
    """Parameter name -> its group."""
    optimizer = config.build(model.named_parameters(), device=CPU)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters())), "each parameter is in exactly one group"
    return {name: groups[id(p)] for name, p in model.named_parameters()}


def test_decay_is_for_matrices_only(model):
    for name, group in treated(model, AdamWConfig(weight_decay=0.3)).items():
        matrix = dict(model.named_parameters())[name].ndim >= 2
        assert group["weight_decay"] == (0.3 if matrix else 0.0), name


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.3), MuonConfig(weight_decay=0.3)], ids=["adamw", "muon"])
def test_stacks_of_experts_are_matrices_and_stacks_of_biases_are_not(config):
    model = DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4, n_expert=3)
    groups = treated(build_model(model, 11, seed=0), config)
    assert groups["blocks.0.ffn.experts.up.weight"]["weight_decay"] == 0.3
    assert groups["blocks.0.ffn.experts.up.weight"].get("muon", False) == isinstance(config, MuonConfig)
    assert groups["blocks.0.ffn.experts.up.bias"]["weight_decay"] == 0.0
    assert not groups["blocks.0.ffn.experts.up.bias"].get("muon", False)


def test_a_group_that_begins_with_stacks_of_biases_is_retuned_as_biases():
    """As a group does where these are divided otherwise than the norms."""
    stacked = DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4, n_expert=3)
    parameters = [(name, p) for name, p in build_model(stacked, 11, seed=0).named_parameters() if ".experts." in name]
    optimizer = AdamWConfig(weight_decay=0.3).build(parameters, device=CPU)
    retune(optimizer, AdamWConfig(weight_decay=0.2))
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert decays == {name: 0.2 if name.endswith("weight") else 0.0 for name, _ in parameters}


def test_decay_for_all(model):
    groups = treated(model, AdamWConfig(weight_decay=0.3, decay=Decay.all))
    assert {group["weight_decay"] for group in groups.values()} == {0.3}


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(model):
    for name, group in treated(model, MuonConfig(lr=0.02, adamw_lr=0.005)).items():
        hidden = name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
        assert group["muon"] == hidden, name
        assert group["lr"] == group["initial_lr"] == (0.02 if hidden else 0.005)


def test_one_learning_rate_serves_both_unless_told(model):
    assert {group["lr"] for group in treated(model, MuonConfig(lr=0.01)).values()} == {0.01}


def test_adamw_takes_the_papers_first_step(model):
    """arXiv 1711.05101, algorithm 2: after one step the moments are the gradient itself."""
    config = AdamWConfig(lr=0.1, weight_decay=0.2, eps=1e-8)
    before = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    optimizer = config.build(model.named_parameters(), device=CPU)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    for name, p in model.named_parameters():
        decay = 0.2 if p.ndim >= 2 else 0.0
        gradient = p.grad.double()
        expected = before[name] * (1 - 0.1 * decay) - 0.1 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


WIDE = DecoderConfig(n_layer=4, n_head=2, d_model=32, context_length=4, n_expert=3)
COMPLETEP = replace(
    WIDE, parametrization=Parametrization.completep, base_d_model=8, base_n_layer=2, base_d_head=WIDE.head_width
)


def rates(config, optimizer):
    model = build_model(config, 11, seed=0)
    built = build_optimizer(model, optimizer, device=CPU)
    assert sorted(name for g in built.param_groups for name in g["param_names"]) == sorted(
        dict(model.named_parameters())
    )
    return {
        name: (group["lr"], group["weight_decay"], group["eps"])
        for group in built.param_groups
        for name in group["param_names"]
    }


def test_adamw_by_width_and_depth():
    """arXiv:2505.01618, table 1, with m_N = 4 and m_L = 2."""
    found = rates(COMPLETEP, AdamWConfig(lr=0.1, weight_decay=0.2, eps=1e-6))
    for name, expected in {
        "tok_emb.weight": (0.1, 0.2, 1e-6 / 4),
        "blocks.0.attn.q.weight": (0.1 / 4, 0.2 * 4, 1e-6 / 8),
        "blocks.3.ffn.experts.down.weight": (0.1 / 4, 0.2 * 4, 1e-6 / 8),
        "blocks.3.ffn.router.weight": (0.1 / 4, 0.2 * 4, 1e-6 / 2),  # without a multiplier: table 3 of 2203.03466
        "blocks.0.attn.q.bias": (0.1, 0.0, 1e-6 / 8),
        "blocks.0.norm1.weight": (0.1, 0.0, 1e-6 / 8),
        "final_norm.weight": (0.1, 0.0, 1e-6 / 4),
    }.items():
        assert found[name] == pytest.approx(expected), name


def test_muon_by_width():
    """Its updates have a spectral norm of 0.2 sqrt(max(r, c)); that should be by sqrt(r / c) (arXiv:2310.17813)."""

    def norm(rows, columns):
        update = orthogonalize(torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(0)), 20)[0]
        return torch.linalg.matrix_norm(update, 2).item() * 0.2 * max(rows, columns) ** 0.5

    found = rates(COMPLETEP, MuonConfig(lr=0.1, weight_decay=0.2, eps=1e-6))
    for name, base, own in (
        ("blocks.0.attn.q.weight", (8, 8), (32, 32)),
        ("blocks.0.ffn.experts.up.weight", (32, 8), (128, 32)),
        ("blocks.0.ffn.router.weight", (3, 8), (3, 32)),
    ):
        lr, weight_decay, _ = found[name]
        wanted = (own[0] / own[1]) ** 0.5 / (base[0] / base[1]) ** 0.5
        assert lr / 0.1 * norm(*own) / norm(*base) == pytest.approx(wanted, rel=0.3), name
        assert lr * weight_decay == pytest.approx(0.1 * 0.2)
    assert found["tok_emb.weight"] == pytest.approx((0.1, 0.2, 1e-6 / 4))


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()], ids=["adamw", "muon"])
def test_training_a_model_of_the_base_size_is_as_standard(config):
    own = replace(COMPLETEP, base_d_model=32, base_n_layer=4)
    losses = []
    for c in (WIDE, own):
        model = build_model(c, 11, seed=0)
        optimizer = build_optimizer(model, config, device=CPU)
        for step in range(3):
            set_lr(optimizer, (step + 1) / 3)
            loss = model(torch.arange(8).view(2, 4)).square().mean()
            loss.backward()
            optimizer.step()
            model.zero_grad()
            losses.append(loss.item())
        assert len(optimizer.param_groups) == len(config.build(model.named_parameters(), device=CPU).param_groups)
    assert losses[:3] == losses[3:]


def test_schedule_and_amendments_keep_the_multipliers():
    optimizer = build_optimizer(build_model(COMPLETEP, 11, seed=0), AdamWConfig(lr=0.1, weight_decay=0.2), device=CPU)
    set_lr(optimizer, 0.5)
    hidden = next(g for g in optimizer.param_groups if "blocks.0.attn.q.weight" in g["param_names"])
    assert hidden["lr"] == pytest.approx(0.1 * 0.5 / 4) and hidden["initial_lr"] == 0.1  # of the base model
    retune(optimizer, AdamWConfig(lr=0.3, weight_decay=0.1))
    set_lr(optimizer, 1.0)
    assert (hidden["lr"], hidden["weight_decay"]) == pytest.approx((0.3 / 4, 0.1 * 4))


def test_adapters_have_the_rates_of_lora_plus():
    """arXiv:2402.12354, section 4: by the width for the matrix that reads it, and none for the other."""
    model = build_model(replace(COMPLETEP, n_expert=None), 11, seed=0)
    prepare_finetuning(model, FinetuneConfig(type=Finetuning.lora))
    optimizer = build_optimizer(model, AdamWConfig(lr=0.1), device=CPU)
    found = {name.rpartition(".")[2]: g["lr"] for g in optimizer.param_groups for name in g["param_names"]}
    assert found == pytest.approx({"lora_down": 0.1 / 4, "lora_up": 0.1})


def test_an_optimizer_without_rules_is_refused():
    with pytest.raises(UserError, match=r"optimizer=sgd; use optimizer=adamw or muon"):
        OptimizerConfig(type="sgd").check_model(COMPLETEP)
    OptimizerConfig(type="sgd").check_model(WIDE)
