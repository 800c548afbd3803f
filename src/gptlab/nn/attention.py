"""Multi-head attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gptlab.nn.cache import LayerCache
from gptlab.nn.linear import is_plain_linear, threaded_linear
from gptlab.nn.position import Rotation, rotate
from gptlab.nn.tensor_parallel import Split, TensorGroup

KV = tuple[Tensor, Tensor]  # (B, G, S, K) each

# Up to this many elements of a query projection q, k and v are computed as one product, which is faster. A large
# product gains nothing from it, and the concatenated weight lives until the backward pass, even where FSDP has freed
# its parts: in GPT-2's smallest model 81 MiB over all blocks.
FUSED_ELEMENTS = 2**18


class Attention(nn.Module):
    """Attention whose H query heads share G key and value heads (arXiv:1706.03762; grouped: arXiv:2305.13245).

    With `qk_norm_eps` queries and keys are RMS-normalized without a gain (as in arXiv:2302.05442). Scores are
    multiplied by `scale` (None: K^-0.5).

    q, k and v are computed as one product where all three are plain linear layers. A hook, a parametrization or an
    adapter on any of them makes all three run as modules, from the next forward pass on.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_head: int,
        n_kv_head: int,
        d_head: int,
        bias: bool,
        qkv_bias: bool,
        qk_norm_eps: float | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
    ):
        super().__init__()
        self.scale = scale
        self.n_head, self.n_kv_head, self.d_head = n_head, n_kv_head, d_head
        self.qk_norm_eps, self.dropout = qk_norm_eps, dropout
        self.q = nn.Linear(d_model, n_head * d_head, bias=qkv_bias)
        self.k = nn.Linear(d_model, n_kv_head * d_head, bias=qkv_bias)
        self.v = nn.Linear(d_model, n_kv_head * d_head, bias=qkv_bias)
        self.out = nn.Linear(n_head * d_head, d_model, bias=bias)
        self._small = self.q.weight.numel() <= FUSED_ELEMENTS
        self._joined: tuple[Tensor, Tensor | None] | None = None
        self._joined_addresses: list[int] = []  # of the parameters while they are its views

    @torch.no_grad()
    def join(self) -> None:
        """Lay the weights of q, k and v out as one matrix, for decoding one token at a time.

        The three parameters become views of it, with their names and values, so nothing is stored twice. To be called
        where the weights stay on their device and in their dtype. No effect where q, k and v must run as modules.
        """
        parts = self.q, self.k, self.v
        if not _fusible(*parts):
            return
        # Column by column: there are more outputs than inputs, and a product with one vector reads in longer runs.
        weight = torch.cat([part.weight for part in parts]).t().contiguous().t()
        bias = None if self.q.bias is None else torch.cat([part.bias for part in parts])
        sizes = [part.out_features for part in parts]
        for part, view in zip(parts, weight.split(sizes), strict=True):
            part.weight.data = view
        if bias is not None:
            for part, view in zip(parts, bias.split(sizes), strict=True):
                part.bias.data = view
        self._joined, self._joined_addresses = (weight, bias), self._addresses()

    def forward(
        self,
        x: Tensor,
        *,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
        source: Tensor | KV | None = None,
    ) -> Tensor:
        """Mix positions: x (B, T, D) -> (B, T, D).

        `mask` broadcasts to (B, H, T, S): bool, True where a query may attend, or a float bias added to the scores. S
        is T, and with a `cache` all positions so far. With a `source`, queries attend to it instead of x: hidden states
        (B, S, D), or the keys and values that `keys_values` made of them.
        """
        q, k, v = self.queries_keys_values(x, rotation=rotation, cache=cache, source=source)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=self.n_kv_head != self.n_head,
        )  # (B, H, T, K)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)

    def queries_keys_values(
        self,
        x: Tensor,
        *,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        source: Tensor | KV | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` makes of the same arguments: queries (B, H, T, K), and keys and values (B, G, S, K) each."""
        if source is None:
            q, k, v = self._heads(x, rotation)
            k, v = (k.transpose(1, 2), v.transpose(1, 2)) if cache is None else cache.extend(k, v)
        else:
            q = self.q(x).unflatten(-1, (self.n_head, self.d_head))  # (B, T, H, K)
            k, v = self.keys_values(source) if isinstance(source, Tensor) else source
        return q.transpose(1, 2), k, v

    def keys_values(self, source: Tensor) -> KV:
        """Keys and values of another sequence's hidden states (B, S, D), for cross-attention."""
        heads = (self.n_kv_head, self.d_head)
        keys, values = (part(source).unflatten(-1, heads).transpose(1, 2) for part in (self.k, self.v))
        return keys, values

    def splits(self) -> dict[str, Split]:
        """How its layers are sharded over a tensor-parallel group: by head."""
        return {"q": Split.column, "k": Split.column, "v": Split.column, "out": Split.row}

    def use_shard(self, group: TensorGroup) -> None:
        """Compute with this rank's heads alone, once the layers are sharded."""
        self.n_head //= group.size
        self.n_kv_head //= group.size

    def _heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.q, self.k, self.v
        # The joined matrix is no parameter: where gradients are wanted the parameters themselves are used.
        joined = None if torch.is_grad_enabled() else self._joined
        if (joined is None and not self._small) or not _fusible(*parts):
            q, k, v = (part(x).unflatten(-1, (-1, self.d_head)) for part in parts)  # (B, T, H or G, K)
            if self.qk_norm_eps is None and rotation is None:
                return q, k, v
            heads = torch.cat((q, k, v), 2)  # (B, T, H + 2 G, K)
        else:
            if joined is None or self._addresses() != self._joined_addresses:  # somebody has replaced or moved them
                bias = None if self.q.bias is None else torch.cat([part.bias for part in parts])
                joined = torch.cat([part.weight for part in parts]), bias
            heads = threaded_linear(x, *joined).unflatten(-1, (self.n_head + 2 * self.n_kv_head, self.d_head))
        if self.qk_norm_eps is None and rotation is None:
            q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), 2)
            return q, k, v
        qk, v = heads.split((self.n_head + self.n_kv_head, self.n_kv_head), 2)
        if self.qk_norm_eps is not None:
            qk = F.rms_norm(qk, (self.d_head,), eps=self.qk_norm_eps)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.n_head, self.n_kv_head), 2)
        return q, k, v

    def _addresses(self) -> list[int]:
        layers = self.q, self.k, self.v
        parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers if layer.bias is not None]
        return [parameter.data_ptr() for parameter in parameters]


def _fusible(*layers: nn.Module) -> bool:
    """Whether nothing would notice that these layers' weights are used without calling the layers."""
    for layer in layers:
        if not is_plain_linear(layer):
            return False
    return not _has_any_global_hook()
