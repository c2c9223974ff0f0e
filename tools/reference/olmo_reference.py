"""A plain PyTorch model of the OLMo-native semantics (and of HF's), for checking, not for speed.

Functional: `forward(config, params, ids)` over a dict of parameters with the canonical names that the
golden files use. Every matrix is [out, in] and experts are stacked. All arithmetic is in the dtype of
the parameters, so the same code gives fp32 and fp64 results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]


@dataclass
class Config:
    """The keys of an OLMo `model:` section that change the function, with OLMo's own defaults, and
    below them two switches that only HF has and one that neither has."""

    d_model: int
    n_heads: int
    n_layers: int
    vocab_size: int
    mlp_hidden_size: int
    n_kv_heads: int | None = None
    clip_qkv: float | None = None
    activation_type: str = "swiglu"
    block_type: str = "sequential"
    rope: bool = False
    rope_theta: float = 10000
    attention_layer_norm: bool = False
    attention_layer_norm_with_affine: bool = True
    layer_norm_type: str = "default"
    layer_norm_with_affine: bool = True
    layer_norm_eps: float = 1e-5
    bias_for_layer_norm: bool | None = None
    include_bias: bool = True
    scale_logits: bool = False
    weight_tying: bool = True
    norm_after: bool = False
    moe_num_experts: int = 8
    moe_top_k: int = 2
    moe_dropless: bool = True
    moe_capacity_factor: float = 1.25
    moe_shared_expert: bool = False
    moe_interleave: bool = False
    # HF only: clip after the q/k norm and not before it; divide the chosen weights by their sum.
    clip_after_norm: bool = False
    norm_topk_prob: bool = False
    # Round the factors of every product but the router's to bf16, forward and backward: what mixed
    # precision does. Only to measure what rounding does to a model.
    bf16_factors: bool = False

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def ffn(self) -> int:
        return self.mlp_hidden_size // 2 if self.activation_type == "swiglu" else self.mlp_hidden_size

    def is_mixture(self, layer: int) -> bool:
        # In OLMo's branch for interleaved models, the first block is sequential.
        return self.block_type == "moe" and not (self.moe_interleave and layer % 2 == 0)

    @property
    def norm_bias(self) -> bool:
        return self.include_bias if self.bias_for_layer_norm is None else self.bias_for_layer_norm

    @property
    def gated_experts(self) -> bool:
        # megablocks' capacity MoE has only a plain MLP class: with swiglu the gate is silently dropped.
        return self.activation_type == "swiglu" and self.moe_dropless


@dataclass
class Router:
    """The routing of one mixture-of-experts layer, over all tokens of the batch in [batch, time] order."""

    logits: Tensor  # [tokens, E]
    probs: Tensor  # [tokens, E]
    ids: Tensor  # [tokens, K], descending probability
    dropped: int = 0


@dataclass
class Output:
    logits: Tensor
    routers: list[Router]
    # Share of q, k and v entries that the clip changed, per layer.
    clipped: list[float] = field(default_factory=list)
    # [batch, time], as often as something clips or is a ReLU: how near each token comes to the point
    # where its gradient jumps, as a share of the clip's limit or of the ReLU's usual argument.
    kinks: list[Tensor] = field(default_factory=list)


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model, in a fixed order (the random weights are drawn in this order)."""
    c, shapes = config, {}
    kv = c.kv_heads * c.head_dim

    def linear(name: str, out: int, inp: int) -> None:
        shapes[f"{name}.weight"] = (out, inp)
        if c.include_bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, size: int, affine: bool) -> None:
        if affine:
            shapes[f"{name}.weight"] = (size,)
            if c.norm_bias:
                shapes[f"{name}.bias"] = (size,)

    shapes["embed_tokens.weight"] = (c.vocab_size, c.d_model)
    for i in range(c.n_layers):
        layer = f"layers.{i}"
        norm(f"{layer}.attention_norm", c.d_model, c.layer_norm_with_affine)
        for which, out in (("q", c.d_model), ("k", kv), ("v", kv)):
            linear(f"{layer}.attention.{which}_proj", out, c.d_model)
        linear(f"{layer}.attention.o_proj", c.d_model, c.d_model)
        if c.attention_layer_norm:
            norm(f"{layer}.attention.q_norm", c.d_model, c.attention_layer_norm_with_affine)
            norm(f"{layer}.attention.k_norm", kv, c.attention_layer_norm_with_affine)
        norm(f"{layer}.mlp_norm", c.d_model, c.layer_norm_with_affine)
        if c.is_mixture(i):
            experts = c.moe_num_experts
            shapes[f"{layer}.moe.router.weight"] = (experts, c.d_model)
            if c.gated_experts:
                shapes[f"{layer}.moe.experts.gate_proj.weight"] = (experts, c.ffn, c.d_model)
            shapes[f"{layer}.moe.experts.up_proj.weight"] = (experts, c.ffn, c.d_model)
            shapes[f"{layer}.moe.experts.down_proj.weight"] = (experts, c.d_model, c.ffn)
            if c.include_bias:
                raise NotImplementedError("the MoE output bias has no canonical name yet")
            if c.moe_shared_expert:
                for which in ("gate", "up"):
                    linear(f"{layer}.moe.shared_expert.{which}_proj", c.ffn, c.d_model)
                linear(f"{layer}.moe.shared_expert.down_proj", c.d_model, c.ffn)
        else:
            for which in ("gate", "up") if c.activation_type == "swiglu" else ("up",):
                linear(f"{layer}.mlp.{which}_proj", c.ffn, c.d_model)
            linear(f"{layer}.mlp.down_proj", c.d_model, c.ffn)
    norm("norm", c.d_model, c.layer_norm_with_affine)
    if not c.weight_tying:
        linear("lm_head", c.vocab_size, c.d_model)
    return shapes


class _RoundedProduct(torch.autograd.Function):
    """a @ b of factors rounded to bf16, and so are the factors of both gradients; no broadcasting."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        a, b = (x.to(torch.bfloat16).to(x.dtype) for x in (a, b))
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        gradient = gradient.to(torch.bfloat16).to(gradient.dtype)
        return gradient @ b.transpose(-1, -2), a.transpose(-1, -2) @ gradient


def _product(config: Config, a: Tensor, b: Tensor) -> Tensor:
    return _RoundedProduct.apply(a, b) if config.bf16_factors else a @ b


def _linear(config: Config, params: Params, name: str, x: Tensor) -> Tensor:
    weight = params[f"{name}.weight"]
    y = _product(config, x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], weight.shape[0])
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def _norm(config: Config, params: Params, name: str, x: Tensor) -> Tensor:
    if config.layer_norm_type != "rms":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + config.layer_norm_eps)
    weight, bias = params.get(f"{name}.weight"), params.get(f"{name}.bias")
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _activation(config: Config, x: Tensor) -> Tensor:
    if config.activation_type == "swiglu":
        return F.silu(x)
    return F.gelu(x) if config.activation_type == "gelu" else F.relu(x)


def _rope(x: Tensor, theta: float) -> Tensor:
    """[batch, heads, time, head_dim]; element j of the first half turns with element j of the second."""
    half, time = x.shape[-1] // 2, x.shape[-2]
    # The angles are made in fp32 as both libraries do, so that an fp64 run differs by arithmetic only.
    frequency = 1.0 / theta ** (torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half))
    angle = (torch.arange(time, dtype=torch.float32)[:, None] * frequency[None, :]).to(x.dtype)
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_mask(batch: int, time: int, document_lengths: Tensor | None) -> Tensor:
    """[batch, time, time], true where row may see column: causal and, if given, the same document."""
    mask = torch.ones(time, time, dtype=torch.bool).tril().expand(batch, time, time)
    if document_lengths is None:
        return mask
    documents = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), row.long()) for row in document_lengths]
    )
    if documents.shape != (batch, time):
        raise ValueError("document lengths do not add up to the sequence length")
    return mask & (documents[:, :, None] == documents[:, None, :])


def padding_bias(mask: Tensor, padding: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, time, time], what OLMo adds to the scores when it is given an `attention_mask`: the lowest fp32 number to
    every key that is padding or comes later. Where a row has no other key, this number absorbs the scores, and the row attends
    equally to all tokens, later ones included."""
    seen = mask & ~padding[:, None, :]
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(torch.float32).min)


def _attention(
    config: Config, params: Params, name: str, x: Tensor, mask: Tensor, padding: Tensor | None, output: Output
) -> Tensor:
    c = config
    q, k, v = (_linear(c, params, f"{name}.{which}_proj", x) for which in "qkv")

    def clip() -> None:
        nonlocal q, k, v
        if c.clip_qkv is not None:
            size = torch.cat((q, k, v), dim=-1).detach().abs() / c.clip_qkv
            output.clipped.append((size > 1).double().mean().item())
            output.kinks.append((size - 1).abs().amin(-1))
            q, k, v = (t.clamp(-c.clip_qkv, c.clip_qkv) for t in (q, k, v))

    if not c.clip_after_norm:
        clip()
    if c.attention_layer_norm:
        # Over the whole projected vector: all heads together.
        q = _norm(c, params, f"{name}.q_norm", q)
        k = _norm(c, params, f"{name}.k_norm", k)
    if c.clip_after_norm:
        clip()

    batch, time, _ = x.shape
    q = q.view(batch, time, c.n_heads, c.head_dim).transpose(1, 2)
    k = k.view(batch, time, c.kv_heads, c.head_dim).transpose(1, 2)
    v = v.view(batch, time, c.kv_heads, c.head_dim).transpose(1, 2)
    if c.rope:
        q, k = _rope(q, c.rope_theta), _rope(k, c.rope_theta)
    # Query head h reads key/value head h // (n_heads / kv_heads).
    k = k.repeat_interleave(c.n_heads // c.kv_heads, dim=1)
    v = v.repeat_interleave(c.n_heads // c.kv_heads, dim=1)
    scores = _product(c, q, k.transpose(-1, -2)) / math.sqrt(c.head_dim)
    if padding is None:
        scores = scores.masked_fill(~mask[:, None], -math.inf)
    else:
        scores = scores + padding_bias(mask, padding, scores.dtype)[:, None]
    mixed = _product(c, scores.softmax(-1), v).transpose(1, 2).reshape(batch, time, c.d_model)
    return _linear(c, params, f"{name}.o_proj", mixed)


def _mlp(config: Config, params: Params, name: str, x: Tensor, output: Output | None = None) -> Tensor:
    up = _linear(config, params, f"{name}.up_proj", x)
    if config.activation_type == "relu" and output is not None:
        output.kinks.append(up.detach().abs().amin(-1) / up.detach().square().mean().sqrt())
    if f"{name}.gate_proj.weight" in params:
        hidden = _activation(config, _linear(config, params, f"{name}.gate_proj", x)) * up
    else:
        hidden = _activation(config, up)
    return _linear(config, params, f"{name}.down_proj", hidden)


def _kept(config: Config, ids: Tensor) -> Tensor:
    """[tokens, K], false for the assignments that a capacity MoE drops."""
    tokens, top_k = ids.shape
    kept = torch.ones_like(ids, dtype=torch.bool)
    if config.moe_dropless:
        return kept
    capacity = int(config.moe_capacity_factor * (top_k * tokens / config.moe_num_experts))
    if capacity == 0:
        return kept
    taken = [0] * config.moe_num_experts
    # First come, first served in token order, and in slot order within a token.
    for token in range(tokens):
        for slot in range(top_k):
            expert = int(ids[token, slot])
            kept[token, slot] = taken[expert] < capacity
            taken[expert] += 1
    return kept


def _moe(config: Config, params: Params, name: str, x: Tensor) -> tuple[Tensor, Router]:
    flat = x.reshape(-1, x.shape[-1])
    logits = flat @ params[f"{name}.router.weight"].T
    probs = logits.softmax(-1)
    weights, ids = probs.topk(config.moe_top_k, dim=-1)
    if config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    kept = _kept(config, ids)
    out = torch.zeros_like(flat)
    for expert in range(config.moe_num_experts):
        token, slot = torch.where((ids == expert) & kept)
        one = {}
        for which in ("gate", "up", "down"):
            stacked = params.get(f"{name}.experts.{which}_proj.weight")
            if stacked is not None:
                one[f"expert.{which}_proj.weight"] = stacked[expert]
        result = _mlp(config, one, "expert", flat[token])
        out = out.index_add(0, token, result * weights[token, slot, None])
    if config.moe_shared_expert:
        out = out + _mlp(config, params, f"{name}.shared_expert", flat)
    return out.view_as(x), Router(logits, probs, ids, int((~kept).sum()))


def forward(
    config: Config,
    params: Params,
    ids: Tensor,
    document_lengths: Tensor | None = None,
    padding: Tensor | None = None,
) -> Output:
    h = params["embed_tokens.weight"][ids]
    mask = attention_mask(*ids.shape, document_lengths)
    output = Output(h, [])
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        x = h if config.norm_after else _norm(config, params, f"{layer}.attention_norm", h)
        x = _attention(config, params, f"{layer}.attention", x, mask, padding, output)
        h = h + (_norm(config, params, f"{layer}.attention_norm", x) if config.norm_after else x)

        x = h if config.norm_after else _norm(config, params, f"{layer}.mlp_norm", h)
        if config.is_mixture(i):
            x, router = _moe(config, params, f"{layer}.moe", x)
            output.routers.append(router)
        else:
            x = _mlp(config, params, f"{layer}.mlp", x, output)
        h = h + (_norm(config, params, f"{layer}.mlp_norm", x) if config.norm_after else x)
    h = _norm(config, params, "norm", h)
    if config.weight_tying:
        logits = _linear(config, params, "embed_tokens", h)
    else:
        logits = _linear(config, params, "lm_head", h)
    output.logits = logits / math.sqrt(config.d_model) if config.scale_logits else logits
    return output


def cross_entropy(logits: Tensor, ids: Tensor, padding: Tensor | None = None) -> Tensor:
    """Mean over the batch * (time - 1) next-token targets, where padding counts 0."""
    logits, targets = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    if padding is None:
        return F.cross_entropy(logits, targets)
    targets = targets.masked_fill(padding[:, 1:].flatten(), -100)
    return F.cross_entropy(logits, targets, reduction="sum") / targets.numel()


def _counts(router: Router) -> Tensor:
    """[E]: how often each expert was chosen, before the capacity drops any; without a gradient."""
    experts = router.probs.shape[-1]
    return F.one_hot(router.ids, experts).sum((0, 1)).to(router.probs.dtype)


def huggingface_loss(routers: list[Router]) -> Tensor:
    """All layers' tokens as one set; k at perfect balance. No weight inside."""
    experts = routers[0].probs.shape[-1]
    tokens = sum(router.probs.shape[0] for router in routers)
    chosen = sum(_counts(router) for router in routers) / tokens
    mean = torch.cat([router.probs for router in routers]).mean(0)
    return experts * (chosen * mean).sum()


def olmo_load_balancing(routers: list[Router], weight: float) -> Tensor:
    """megablocks: the product per layer, then the mean over layers; `weight` at perfect balance."""
    tokens, experts = routers[0].probs.shape
    top_k = routers[0].ids.shape[-1]
    total = sum((_counts(router) * router.probs.mean(0)).sum() for router in routers)
    return weight * experts / (len(routers) * tokens * top_k) * total


def olmo_z(routers: list[Router], weight: float) -> Tensor:
    """megablocks: also divided by top_k, since it shares the denominator of the balancing loss."""
    tokens, top_k = routers[0].ids.shape
    total = sum(router.logits.logsumexp(-1).square().sum() for router in routers)
    return weight * total / (len(routers) * tokens * top_k)


def megatron_load_balancing(routers: list[Router], weight: float, batch: int) -> Tensor:
    """seq_aux_loss: per sequence, mean over sequences, and the sum (not the mean) over layers."""
    experts, top_k = routers[0].probs.shape[-1], routers[0].ids.shape[-1]
    total = 0.0
    for router in routers:
        probs = router.probs.view(batch, -1, experts)
        chosen = F.one_hot(router.ids.view(batch, -1, top_k), experts).sum((1, 2)).to(probs.dtype)
        share = chosen / (probs.shape[1] * top_k)
        total = total + experts * (share * probs.mean(1)).sum(-1).mean()
    return weight * total
