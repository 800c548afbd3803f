"""How ranks are arranged, which samples each of them reads, and what is recomputed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptlab.data.order import ExampleOrder
from gptlab.distributed.config import Layout, Recompute, Sharding, StrategyConfig
from gptlab.distributed.parallelize import parallelize
from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.steps import Steps
from gptlab.training.datamodule import TrainBatches


@pytest.mark.parametrize(
    ("options", "world_size", "expected"),
    [
        ({"type": "auto"}, 1, Layout()),
        ({"type": "ddp"}, 8, Layout(replicas=8)),
        ({"type": "zero1"}, 8, Layout(replicas=8)),
        ({"type": "zero2"}, 8, Layout(shards=8)),
        ({"type": "fsdp"}, 8, Layout(shards=8)),
        ({"type": "hsdp"}, 8, Layout(replicas=2, shards=4)),
        ({"type": "hsdp", "replicas": 4}, 8, Layout(replicas=4, shards=2)),
        ({"type": "tp"}, 8, Layout(tensor=8)),
        ({"type": "fsdp_tp"}, 8, Layout(shards=4, tensor=2)),
        ({"type": "fsdp_tp", "tensor_parallel": 4}, 8, Layout(shards=2, tensor=4)),
    ],
)
def test_a_strategy_arranges_devices(options, world_size, expected):
    layout = StrategyConfig(**options | {"type": Sharding(options["type"])}).layout(world_size)
    assert layout == expected
    assert layout.replicas * layout.shards * layout.tensor == world_size
    ranks = [layout.data_rank(rank) for rank in range(world_size)]
    assert sorted(ranks) == sorted(list(range(layout.data)) * layout.tensor)


def test_hsdp_has_a_replica_on_each_node():
    assert StrategyConfig(type=Sharding.hsdp).layout(32, num_nodes=4) == Layout(replicas=4, shards=8)


@pytest.mark.parametrize(
    ("options", "world_size", "message"),
    [
        ({"type": "tp"}, 1, "there is one"),
        ({"type": "fsdp_tp"}, 2, "use strategy=tp"),
        ({"type": "fsdp_tp", "tensor_parallel": 3}, 4, "use 2 or 4"),
        ({"type": "hsdp"}, 2, "a group of its own"),
        ({"type": "hsdp", "replicas": 1}, 4, "use 2 or 4"),
        ({"type": "tp", "tensor_parallel": 2}, 4, "use strategy=fsdp_tp"),
    ],
)
def test_what_a_strategy_cannot_arrange_is_refused(options, world_size, message):
    with pytest.raises(UserError, match=message):
        StrategyConfig(**options | {"type": Sharding(options["type"])}).layout(world_size)


class Indices:
    """Sequences that are their own indices."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def gather(self, indices):
        return indices


class AsIs:
    def collate(self, windows, sample_ids):
        return windows.tolist()


@pytest.mark.parametrize("step", [0, 7, 600])
def test_a_step_reads_the_same_samples_on_any_number_of_devices(step):
    """Also after a run has moved from one number to another."""

    def seen(layout, world_size):
        parts = {
            layout.data_rank(rank): TrainBatches(
                Indices(1000),
                AsIs(),
                ExampleOrder(5, 1000),
                steps=Steps.of(1, 8),
                rank=layout.data_rank(rank),
                world_size=layout.data,
            )[step]
            for rank in range(world_size)
        }
        return [window for rank in sorted(parts) for window in parts[rank]]

    alone = seen(Layout(), 1)
    assert len(set(alone)) == 8
    for layout in (Layout(replicas=2), Layout(shards=4), Layout(2, 2), Layout(tensor=4), Layout(shards=2, tensor=2)):
        assert seen(layout, layout.data * layout.tensor) == alone


class Count(TorchDispatchMode):
    """Counts operations by name, and keeps what they made alive as little as autograd does."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def test_recomputing_computes_twice_and_changes_no_bit():
    def trained(recompute):
        model = build_model(DecoderConfig(n_layer=2, n_head=2, d_model=16, context_length=8, dropout=0.1), 20, seed=1)
        names = list(model.state_dict())
        parallelize(model, StrategyConfig(activation_checkpointing=recompute), None, precision="32-true")
        assert list(model.state_dict()) == names
        torch.manual_seed(2)
        with Count() as seen:
            model(torch.arange(16).view(2, 8)).square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters()}, seen.counts

    kept, once = trained(Recompute.none)
    for recompute in (Recompute.full, Recompute.selective):
        again, counts = trained(recompute)
        assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())
        assert counts["gelu"] == 2 * once["gelu"]
        products = sum(counts.get(name, 0) for name in ("mm", "addmm", "bmm"))
        products_once = sum(once.get(name, 0) for name in ("mm", "addmm", "bmm"))
        if recompute is Recompute.selective:
            assert products == products_once
        else:
            assert products > products_once
