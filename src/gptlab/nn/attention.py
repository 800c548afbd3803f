"""Multi-head attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.nn.cache import LayerCache
from gptlab.nn.position import Rotation, rotate

KV = tuple[Tensor, Tensor]  # (B, G, S, K) each

# Up to this size q, k and v are one product, which is faster. A large product gains nothing from it, and the joined
# weight lives until the backward pass, even where FSDP has given its parts back.
JOINT_ELEMENTS = 2**20


class Attention(nn.Module):
    """Attention whose H query heads share G key and value heads (arXiv:1706.03762; grouped: arXiv:2305.13245).

    With `qk_norm_eps` each query and key is divided by its root mean square (as in arXiv:2302.05442, without gain).
    Scores are multiplied by `scale` (None: K^-0.5).
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
        # To be turned off where q, k and v must be called as modules: tensor parallelizm, adapters, hooks.
        self.joint_projection = self.q.weight.numel() <= JOINT_ELEMENTS
        self._joined: tuple[Tensor, Tensor | None] | None = None

    @torch.no_grad()
    def join(self) -> None:
        """Lay the weights of q, k and v in one matrix, for reading one token at a time.

        Nothing is held twice: the three parameters become parts of it, with their names and values. To be called where
        the weights stay on their device and in their type.
        """
        parts = self.q, self.k, self.v
        # Column by column: there are more outputs than inputs, and a product with one vector reads in longer runs.
        weight = torch.cat([part.weight for part in parts]).t().contiguous().t()
        bias = None if self.q.bias is None else torch.cat([part.bias for part in parts])
        rows = [part.out_features for part in parts]
        for part, view in zip(parts, weight.split(rows), strict=True):
            part.weight.data = view
        if bias is not None:
            for part, view in zip(parts, bias.split(rows), strict=True):
                part.bias.data = view
        self._joined = weight, bias

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

        mask broadcasts to (B, H, T, S): True may be looked at, or a float bias that is added to the scores. S is T,
        and with a cache all positions so far. With a `source` it is what is looked at instead of x: states (B, S, D),
        or what `keys_values` made of them.
        """
        if source is None:
            q, k, v = self._heads(x, rotation)
            k, v = (k.transpose(1, 2), v.transpose(1, 2)) if cache is None else cache.extend(k, v)  # (B, G, S, K)
        else:
            q = self.q(x).unflatten(-1, (self.n_head, self.d_head))  # (B, T, H, K)
            k, v = self.keys_values(source) if isinstance(source, Tensor) else source
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=self.n_kv_head != self.n_head,
        )  # (B, H, T, K)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)

    def keys_values(self, source: Tensor) -> KV:
        """What another sequence offers to be looked at: its states (B, S, D) as keys and values."""
        heads = (self.n_kv_head, self.d_head)
        return tuple(part(source).unflatten(-1, heads).transpose(1, 2) for part in (self.k, self.v))

    def _heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.q, self.k, self.v
        if self._joined is not None:
            qkv = F.linear(x, *self._joined)
        elif self.joint_projection:
            bias = None if self.q.bias is None else torch.cat([part.bias for part in parts])
            qkv = F.linear(x, torch.cat([part.weight for part in parts]), bias)
        else:
            qkv = torch.cat([part(x) for part in parts], -1)
        heads = qkv.unflatten(-1, (self.n_head + 2 * self.n_kv_head, self.d_head))  # (B, T, H + 2 G, K)
        if self.qk_norm_eps is None and rotation is None:
            return heads.split((self.n_head, self.n_kv_head, self.n_kv_head), 2)
        qk, v = heads.split((self.n_head + self.n_kv_head, self.n_kv_head), 2)
        if self.qk_norm_eps is not None:
            qk = F.rms_norm(qk, (self.d_head,), eps=self.qk_norm_eps)
        if rotation is not None:
            qk = rotate(qk, rotation)
        return *qk.split((self.n_head, self.n_kv_head), 2), v
