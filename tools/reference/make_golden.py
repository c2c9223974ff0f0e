"""Golden states of transformers' OlmoeForCausalLM: fp32, CPU, eager attention, eager experts.

Each is also computed in fp64 by the independent olmo_reference.py, and a disagreement is an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

import golden_io
import olmo_reference as reference
from golden_io import Golden

SCRIPT = "make_golden.py"


@dataclass
class Model:
    description: str
    change: dict[str, object] = field(default_factory=dict)
    batch: int = 2
    time: int = 13
    # Write config.json with the keys and spelling of the released models (rope_theta at the top
    # level, explicit nulls), not as this version of transformers saves it.
    release_json: bool = False
    # Factors on the random weights whose names hold the key.
    scale: dict[str, float] = field(default_factory=dict)


BASE = {
    "vocab_size": 83,
    "hidden_size": 32,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
    "clip_qkv": None,
    "router_aux_loss_coef": 0.05,
}

MODELS = {
    "toy": Model(
        "the library's unit-test toy",
        {"vocab_size": 99, "intermediate_size": 16, "num_experts": 8, "router_aux_loss_coef": 0.1},
        batch=3,
    ),
    "gqa": Model(
        "grouped key/value heads, three layers, top-3",
        {
            "vocab_size": 71,
            "hidden_size": 48,
            "intermediate_size": 10,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "rope_theta": 500.0,
        },
        time=10,
    ),
    "clip_qkv": Model("clip after the q/k norm", {"clip_qkv": 1.2}),
    "norm_topk_prob": Model("chosen weights divided by their sum", {"norm_topk_prob": True, "num_experts_per_tok": 3}),
    "odd": Model(
        "odd sizes everywhere",
        {
            "vocab_size": 101,
            "hidden_size": 30,
            "intermediate_size": 13,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_experts": 7,
            "num_experts_per_tok": 3,
        },
        batch=3,
        time=11,
    ),
    # Small embeddings, since otherwise a token would predict itself with certainty, and layers that add even less.
    "tied": Model(
        "head tied to the embedding",
        {"tie_word_embeddings": True},
        scale={"embed_tokens": 0.25, "o_proj": 0.4, "down_proj": 0.4},
    ),
    "release_shape": Model(
        "64 experts top-8 and the release's constants, narrow; config.json spelled as released",
        {
            "vocab_size": 97,
            "intermediate_size": 8,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 4096,
            "router_aux_loss_coef": 0.01,
        },
        time=16,
        release_json=True,
    ),
    "long": Model(
        "one layer, one sequence of 150 tokens",
        {"num_hidden_layers": 1, "vocab_size": 61, "max_position_embeddings": 256, "num_experts": 4},
        batch=1,
        time=150,
    ),
}


def hf_config(settings: dict[str, object]) -> OlmoeConfig:
    settings = dict(settings)
    theta = settings.pop("rope_theta")
    config = OlmoeConfig(
        **settings,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=1e-5,
        pad_token_id=1,
        eos_token_id=settings["vocab_size"] - 1,
        output_router_logits=True,
    )
    config.architectures = ["OlmoeForCausalLM"]
    return config


def config_json(model: Model, config: OlmoeConfig) -> str:
    if not model.release_json:
        return config.to_json_string()
    keys = (
        "architectures attention_bias attention_dropout clip_qkv eos_token_id hidden_act hidden_size "
        "initializer_range intermediate_size max_position_embeddings model_type norm_topk_prob "
        "num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads "
        "output_router_logits pad_token_id rms_norm_eps router_aux_loss_coef tie_word_embeddings "
        "use_cache vocab_size"
    ).split()
    found = {key: getattr(config, key) for key in keys}
    found |= {
        "rope_scaling": None,
        "rope_theta": config.rope_parameters["rope_theta"],
        "torch_dtype": "float32",
        "transformers_version": "4.43.0.dev0",
    }
    return json.dumps(dict(sorted(found.items())), indent=2)


def reference_config(config: OlmoeConfig) -> reference.Config:
    return reference.Config(
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        n_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        mlp_hidden_size=2 * config.intermediate_size,
        clip_qkv=config.clip_qkv,
        block_type="moe",
        rope=True,
        rope_theta=config.rope_parameters["rope_theta"],
        attention_layer_norm=True,
        layer_norm_type="rms",
        layer_norm_eps=config.rms_norm_eps,
        include_bias=False,
        weight_tying=config.tie_word_embeddings,
        moe_num_experts=config.num_experts,
        moe_top_k=config.num_experts_per_tok,
        clip_after_norm=True,
        norm_topk_prob=config.norm_topk_prob,
    )


# Canonical name inside a layer -> name in transformers. Gate and up are one tensor there.
LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.gate.weight",
    "moe.experts.down_proj.weight": "mlp.experts.down_proj",
}
TOP_NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def to_hf(params: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    found = {hf: params[own] for own, hf in TOP_NAMES.items() if own in params}
    for i in range(layers):
        own, hf = f"layers.{i}.", f"model.layers.{i}."
        found |= {hf + theirs: params[own + ours] for ours, theirs in LAYER_NAMES.items()}
        gate, up = (params[f"{own}moe.experts.{which}_proj.weight"] for which in ("gate", "up"))
        found[f"{hf}mlp.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
    return found


def from_hf(tensors: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    found = {own: tensors[hf] for own, hf in TOP_NAMES.items() if hf in tensors}
    for i in range(layers):
        own, hf = f"layers.{i}.", f"model.layers.{i}."
        found |= {own + ours: tensors[hf + theirs] for ours, theirs in LAYER_NAMES.items()}
        gate, up = tensors[f"{hf}mlp.experts.gate_up_proj"].chunk(2, dim=1)
        found[f"{own}moe.experts.gate_proj.weight"] = gate
        found[f"{own}moe.experts.up_proj.weight"] = up
    return found


def run_transformers(
    config: OlmoeConfig, params: dict[str, torch.Tensor], ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    model = OlmoeForCausalLM._from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    given = to_hf(params, config.num_hidden_layers)
    with torch.no_grad():
        # named_parameters lists a tied head once, under the embedding's name.
        named = dict(model.named_parameters())
        if set(named) != set(given):
            raise RuntimeError(f"parameter names differ: {sorted(set(named) ^ set(given))}")
        for name, parameter in named.items():
            parameter.copy_(given[name])
    model.train()
    output = model(input_ids=ids, labels=ids, output_router_logits=True)
    output.loss.backward()

    grads = from_hf({name: parameter.grad for name, parameter in named.items()}, config.num_hidden_layers)
    probs = torch.stack([logits.softmax(-1, dtype=torch.float32) for logits in output.router_logits])
    tensors = {
        "input_ids": ids.to(torch.int32),
        "logits": output.logits,
        "loss.ce": model.loss_function(output.logits, ids, config.vocab_size).reshape(1),
        "loss.aux": output.aux_loss.reshape(1),
        "loss.total": output.loss.reshape(1),
        **golden_io.router_tensors(probs, config.num_experts_per_tok),
        **{f"param.{name}": value for name, value in params.items()},
        **{f"grad.{name}": grads[name] for name in params},
    }
    return {name: tensor.detach() for name, tensor in tensors.items()}


def losses(
    config: OlmoeConfig, output: reference.Output, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy, auxiliary loss without its weight, and the total loss that is trained on."""
    ce = reference.cross_entropy(output.logits, ids)
    aux = reference.huggingface_loss(output.routers)
    return ce, aux, ce + config.router_aux_loss_coef * aux


def run_reference(
    config: OlmoeConfig, params: dict[str, torch.Tensor], ids: torch.Tensor
) -> tuple[dict[str, torch.Tensor], reference.Output]:
    """The same quantities from the independent model in fp64."""
    leaves = {name: value.double().requires_grad_() for name, value in params.items()}
    output = reference.forward(reference_config(config), leaves, ids)
    ce, aux, total = losses(config, output, ids)
    total.backward()
    probs = torch.stack([router.probs for router in output.routers])
    tensors = {
        "logits": output.logits,
        "loss.ce": ce.reshape(1),
        "loss.aux": aux.reshape(1),
        "loss.total": total.reshape(1),
        **golden_io.router_tensors(probs, config.num_experts_per_tok),
        **{f"grad.{name}": leaf.grad for name, leaf in leaves.items()},
    }
    return {name: tensor.detach() for name, tensor in tensors.items()}, output


def make(name: str) -> Golden:
    model = MODELS[name]
    config = hf_config({**BASE, **model.change})
    drawn = golden_io.draw(
        reference_config(config),
        model.batch,
        model.time,
        model.scale,
        lambda output, ids: losses(config, output, ids)[-1],
    )
    tensors = run_transformers(config, drawn.params, drawn.ids)
    expected, output = run_reference(config, drawn.params, drawn.ids)
    if not torch.equal(expected["router.ids"], tensors["router.ids"]):
        raise RuntimeError(f"{name}: transformers and the reference choose different experts")
    compared = [key for key in expected if key != "router.ids"]
    errors = {key: golden_io.relative_error(tensors[key], expected[key]) for key in compared}
    worst = max(errors, key=errors.get)
    if errors[worst] > 1e-5:
        raise RuntimeError(f"{name}: transformers and the reference differ by {errors[worst]:.1e} in {worst}")
    if config.clip_qkv is not None and min(output.clipped) < 0.1:
        raise RuntimeError(f"{name}: clips too little: {output.clipped}")

    weights = {"auxiliary": "huggingface", "load_balancing_weight": config.router_aux_loss_coef, "z_weight": 0.0}
    metadata = golden_io.base_metadata(SCRIPT, model.description, weights)
    metadata["config_hf"] = config_json(model, config)
    facts = {
        "seed": drawn.seed,
        "margin": f"{tensors['router.margin'].min():.1e}",
        "ce": f"{tensors['loss.ce'].item():.3f}",
        "aux": f"{tensors['loss.aux'].item():.3f}",
        "vs_fp64_reference": f"{errors[worst]:.1e}({worst})",
        "bf16": f"{drawn.rounding:.1e}({drawn.worst})",
    }
    if config.clip_qkv is not None:
        facts["clipped"] = [round(share, 2) for share in output.clipped]
    return Golden(name, model.description, tensors, metadata, facts)


if __name__ == "__main__":
    raise SystemExit(golden_io.main(make, list(MODELS)))
