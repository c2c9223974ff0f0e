"""Golden states of the OLMo-native variants, for which transformers has no model.

Computed by olmo_reference.py in fp64 and rounded to fp32 on writing. The model that
alternates dense and mixture-of-experts blocks can also be built from parts of transformers, and must agree with that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
import yaml
from transformers import OlmoeForCausalLM
from transformers.models.olmo.modeling_olmo import OlmoMLP

import golden_io
import make_golden
import olmo_reference as reference
from golden_io import Golden

SCRIPT = "make_golden_olmo.py"

# The release's switches at a small size. Each model below lists only what it changes.
BASE = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 24,
    "activation_type": "swiglu",
    "block_type": "moe",
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 10000,
    "flash_attention": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "attention_layer_norm": True,
    "attention_layer_norm_with_affine": True,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "layer_norm_eps": 1e-5,
    "bias_for_layer_norm": False,
    "max_sequence_length": 32,
    "include_bias": False,
    "scale_logits": False,
    "vocab_size": 83,
    "embedding_size": 83,
    "weight_tying": False,
    "eos_token_id": 82,
    "pad_token_id": 1,
    "init_device": "cpu",
    "init_fn": "normal",
    "init_std": 0.02,
    "init_cutoff_factor": 3,
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "moe_dropless": True,
    "moe_mlp_impl": "sparse",
    "moe_loss_weight": 0.05,
    "moe_zloss_weight": 0.02,
}


@dataclass
class Model:
    description: str
    change: dict[str, object] = field(default_factory=dict)
    batch: int = 2
    time: int = 13
    auxiliary: str = "olmo"
    document_lengths: list[list[int]] | None = None
    # Places of padding in each sequence, whatever the ids there are.
    padding_at: list[list[int]] | None = None
    # Factors on the random weights whose names hold the key.
    scale: dict[str, float] = field(default_factory=dict)

    @property
    def lengths(self) -> torch.Tensor | None:
        return None if self.document_lengths is None else torch.tensor(self.document_lengths)

    @property
    def padding(self) -> torch.Tensor | None:
        """[batch, time], true for padding."""
        if self.padding_at is None:
            return None
        return torch.tensor([[t in places for t in range(self.time)] for places in self.padding_at])


# Keys without a meaning for a dense model.
NO_MOE = {key: None for key in BASE if key.startswith("moe_")}

MODELS = {
    "olmo_losses": Model(
        "dropless MoE with OLMo's load-balancing loss and router z-loss, both per layer",
        {"n_layers": 3, "moe_top_k": 3, "moe_loss_weight": 0.2, "moe_zloss_weight": 0.1, "mlp_hidden_size": 16},
        batch=3,
    ),
    "megatron_losses": Model(
        "dropless MoE with Megatron's seq_aux_loss: per layer, per sequence, summed over layers",
        {"n_layers": 3, "moe_loss_weight": 0.1, "moe_zloss_weight": None, "mlp_hidden_size": 16},
        batch=3,
        auxiliary="megatron",
    ),
    "shared_expert": Model(
        "dropless MoE plus a shared expert as wide as a routed one",
        {"moe_shared_expert": True, "moe_num_experts": 6, "moe_top_k": 2, "mlp_hidden_size": 22},
    ),
    "capacity": Model(
        "capacity MoE with dropped assignments; experts are plain MLPs with silu and no gate",
        {"moe_dropless": False, "moe_capacity_factor": 1.0},
        batch=3,
    ),
    "dense": Model(
        "sequential block with a dense SwiGLU MLP",
        {**NO_MOE, "block_type": "sequential"},
        auxiliary="none",
    ),
    # With weights of 1 such a norm would make the output of every layer as large as the embedding.
    "norm_after": Model(
        "norms after attention and after the MoE, none before",
        {"norm_after": True},
        scale={"attention_norm": 0.4, "mlp_norm": 0.4},
    ),
    "layernorm": Model(
        "LayerNorm with bias (q/k norms too), bias in every linear and in the head, dense exact GELU",
        {
            **NO_MOE,
            "block_type": "sequential",
            "layer_norm_type": "default",
            "include_bias": True,
            "bias_for_layer_norm": None,
            "activation_type": "gelu",
            "mlp_hidden_size": 52,
        },
        auxiliary="none",
    ),
    "nonparametric": Model(
        "LayerNorm without weights, no q/k norm, no auxiliary loss",
        {
            "layer_norm_type": "default",
            "layer_norm_with_affine": False,
            "attention_layer_norm": False,
            "moe_loss_weight": 0.0,
            "moe_zloss_weight": None,
        },
        auxiliary="none",
    ),
    "clip_qkv_olmo": Model(
        "clip of the fused q, k, v before the q/k norm, with grouped key/value heads; no z-loss",
        {"clip_qkv": 0.8, "n_kv_heads": 2, "moe_zloss_weight": None},
    ),
    "scale_logits": Model(
        "logits over the square root of d_model, tied head",
        {"scale_logits": True, "weight_tying": True},
    ),
    "documents": Model(
        "attention inside documents only; rope positions run on across documents",
        {"flash_attention": True},
        time=16,
        document_lengths=[[5, 7, 4], [3, 13, 0]],
    ),
    "padding": Model(
        "padding behind, in front, here and there, and none, hidden from attention as OLMo hides it",
        {"n_kv_heads": 2},
        batch=4,
        time=11,
        padding_at=[[8, 9, 10], [0, 1, 2], [0, 4, 5, 10], []],
    ),
    "qk_norm_plain": Model(
        "q/k norm without weights while the block norms have weights",
        {"attention_layer_norm_with_affine": False, "mlp_hidden_size": 16},
    ),
    "interleave": Model(
        "dense blocks and mixtures in turn, beginning with a dense one; OLMo's losses over the two mixtures",
        {"moe_interleave": True, "n_layers": 5, "d_model": 24, "mlp_hidden_size": 20, "moe_loss_weight": 0.2},
    ),
    "relu_multi_query": Model(
        "dense ReLU MLP, no gate, one key/value head, no q/k norm",
        {
            **NO_MOE,
            "block_type": "sequential",
            "activation_type": "relu",
            "n_kv_heads": 1,
            "attention_layer_norm": False,
            "mlp_hidden_size": 40,
        },
        auxiliary="none",
    ),
}

# These are written as null, which means "not set" in a configuration; other nulls are left out.
KEEP_NULL = ("moe_zloss_weight", "bias_for_layer_norm")


def yaml_config(model: Model) -> dict[str, object]:
    merged = {**BASE, **model.change}
    moe = merged["block_type"] == "moe"

    def wanted(key: str) -> bool:
        return merged[key] is not None or (key in KEEP_NULL and (moe or not key.startswith("moe_")))

    return {key: value for key, value in merged.items() if wanted(key)}


def reference_config(settings: dict[str, object]) -> reference.Config:
    known = {f.name for f in fields(reference.Config)}
    return reference.Config(**{key: value for key, value in settings.items() if key in known})


def run_transformers(
    model: Model, settings: dict[str, object], params: dict[str, torch.Tensor], ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Logits, total loss and gradients of OlmoeForCausalLM whose even blocks have OLMo's MLP, in fp32."""
    config = reference_config(settings)
    hf = make_golden.hf_config(
        {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": config.ffn,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.kv_heads,
            "max_position_embeddings": settings["max_sequence_length"],
            "num_experts": config.moe_num_experts,
            "num_experts_per_tok": config.moe_top_k,
            "rope_theta": config.rope_theta,
        }
    )
    built = OlmoeForCausalLM._from_config(
        hf, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    for layer in range(0, config.n_layers, 2):
        built.model.layers[layer].mlp = OlmoMLP(hf)
    named = dict(built.named_parameters())
    names = {own: theirs for own, theirs in make_golden.TOP_NAMES.items()}
    for layer in range(config.n_layers):
        own, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        inside = dict(make_golden.LAYER_NAMES)
        inside |= {f"mlp.{which}_proj.weight": f"mlp.{which}_proj.weight" for which in ("gate", "up", "down")}
        names |= {own + ours: theirs + hf_name for ours, hf_name in inside.items() if theirs + hf_name in named}

    def fused(name: str) -> list[str]:
        return [name.replace("gate_up_proj", f"{which}_proj") + ".weight" for which in ("gate", "up")]

    stacks = {name: fused(name.removeprefix("model.").replace(".mlp.", ".moe.")) for name in named if "gate_up" in name}
    if set(named) != set(names.values()) | set(stacks):
        raise RuntimeError(f"parameter names differ: {sorted(set(named) ^ (set(names.values()) | set(stacks)))}")
    with torch.no_grad():
        for own, theirs in names.items():
            named[theirs].copy_(params[own])
        for theirs, own in stacks.items():
            named[theirs].copy_(torch.cat([params[name] for name in own], dim=1))
    output = built(input_ids=ids, output_router_logits=True)
    routers = []
    for logits in output.router_logits:
        probs = logits.softmax(-1)
        routers.append(reference.Router(logits, probs, probs.topk(config.moe_top_k, dim=-1).indices))
    total = losses(model, settings, reference.Output(output.logits, routers), ids)["total"]
    total.backward()
    found = {"logits": output.logits, "loss.total": total.reshape(1)}
    found |= {f"grad.{own}": named[theirs].grad for own, theirs in names.items()}
    for theirs, own in stacks.items():
        found |= {f"grad.{name}": half for name, half in zip(own, named[theirs].grad.chunk(2, dim=1))}
    return {name: tensor.detach() for name, tensor in found.items()}


@dataclass
class Result:
    tensors: dict[str, torch.Tensor]
    output: reference.Output


def compute(
    model: Model, settings: dict[str, object], params: dict[str, torch.Tensor], ids: torch.Tensor
) -> Result:
    """Forward, losses and backward in the dtype of `params`."""
    config = reference_config(settings)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    output = reference.forward(config, leaves, ids, model.lengths, model.padding)
    found = losses(model, settings, output, ids)
    found["total"].backward()

    tensors = {"input_ids": ids.to(torch.int32), "logits": output.logits}
    tensors |= {f"loss.{name}": value.reshape(1) for name, value in found.items()}
    if output.routers:
        tensors |= golden_io.router_tensors(torch.stack([r.probs for r in output.routers]), config.moe_top_k)
    if model.lengths is not None:
        tensors["document_lengths"] = model.lengths.to(torch.int32)
    if model.padding is not None:
        tensors["padding"] = model.padding.to(torch.int32)
    for name, leaf in leaves.items():
        tensors[f"param.{name}"] = leaf
        tensors[f"grad.{name}"] = leaf.grad
    return Result({name: tensor.detach() for name, tensor in tensors.items()}, output)


def losses(
    model: Model, settings: dict[str, object], output: reference.Output, ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Each loss with its weight, and their sum."""
    found = {"ce": reference.cross_entropy(output.logits, ids, model.padding)}
    lb_weight, z_weight = loss_weights(model, settings)
    if model.auxiliary == "olmo":
        found["load_balancing"] = reference.olmo_load_balancing(output.routers, lb_weight)
        if z_weight:
            found["z"] = reference.olmo_z(output.routers, z_weight)
    elif model.auxiliary == "megatron":
        found["load_balancing"] = reference.megatron_load_balancing(output.routers, lb_weight, model.batch)
    found["total"] = sum(found.values())
    return found


def loss_weights(model: Model, settings: dict[str, object]) -> tuple[float, float]:
    if model.auxiliary == "none":
        return 0.0, 0.0
    z = (settings.get("moe_zloss_weight") or 0.0) if model.auxiliary == "olmo" else 0.0
    return float(settings["moe_loss_weight"]), float(z)


def make(name: str) -> Golden:
    model = MODELS[name]
    settings = yaml_config(model)
    config = reference_config(settings)
    drawn = golden_io.draw(
        config,
        model.batch,
        model.time,
        model.scale,
        lambda output, ids: losses(model, settings, output, ids)["total"],
        model.lengths,
        model.padding,
    )
    double = {key: value.double() for key, value in drawn.params.items()}
    result = compute(model, settings, double, drawn.ids)

    # A golden state that does not exercise its feature would pass any implementation.
    dropped = [router.dropped for router in result.output.routers]
    if config.clip_qkv is not None and min(result.output.clipped) < 0.1:
        raise RuntimeError(f"{name}: clips too little: {result.output.clipped}")
    if not config.moe_dropless and min(dropped) == 0:
        raise RuntimeError(f"{name}: drops nothing")

    lb_weight, z_weight = loss_weights(model, settings)
    weights = {"auxiliary": model.auxiliary, "load_balancing_weight": lb_weight, "z_weight": z_weight}
    metadata = golden_io.base_metadata(SCRIPT, model.description, weights)
    metadata["config_olmo"] = yaml.safe_dump(settings, sort_keys=False)

    # The distance of an fp32 run of the same code from the stored values, which bounds what a test can expect.
    margin = result.tensors.get("router.margin")
    single = compute(model, settings, drawn.params, drawn.ids).tensors
    compared = [key for key, value in single.items() if value.is_floating_point()]
    worst = max(compared, key=lambda key: golden_io.relative_error(single[key], result.tensors[key]))
    facts = {
        "seed": drawn.seed,
        "margin": f"{margin.min():.1e}" if margin is not None else "-",
        "ce": f"{result.tensors['loss.ce'].item():.3f}",
        "fp32_error": f"{golden_io.relative_error(single[worst], result.tensors[worst]):.1e}({worst})",
        "bf16": f"{drawn.rounding:.1e}({drawn.worst})",
    }
    if config.moe_interleave:
        theirs = run_transformers(model, settings, drawn.params, drawn.ids)
        if missing := {f"grad.{key}" for key in drawn.params} - set(theirs):
            raise RuntimeError(f"{name}: transformers has no {missing}")
        errors = {key: golden_io.relative_error(value, result.tensors[key]) for key, value in theirs.items()}
        worst = max(errors, key=errors.get)
        if errors[worst] > 1e-5:
            raise RuntimeError(f"{name}: transformers and the reference differ by {errors[worst]:.1e} in {worst}")
        facts["vs_transformers"] = f"{errors[worst]:.1e}({worst})"
    if config.clip_qkv is not None:
        facts["clipped"] = [round(share, 2) for share in result.output.clipped]
    if sum(dropped):
        facts["dropped"] = dropped
    return Golden(name, model.description, result.tensors, metadata, facts)


if __name__ == "__main__":
    raise SystemExit(golden_io.main(make, list(MODELS)))
