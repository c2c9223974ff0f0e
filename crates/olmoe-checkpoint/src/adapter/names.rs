//! The names of tensors in peft's files.

/// What peft puts before the names of the model.
pub(super) const PREFIX: &str = "base_model.model.";
/// What it puts behind the name of a module whose own weight it keeps.
pub(super) const BASE_LAYER: &str = "base_layer";

/// What a tensor is of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    A,
    B,
    /// A of an embedding, `[r, V]`.
    EmbeddingA,
    /// B of an embedding, `[D, r]`.
    EmbeddingB,
    Magnitude,
}

impl Role {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Role::A => "lora_A.weight",
            Role::B => "lora_B.weight",
            Role::EmbeddingA => "lora_embedding_A",
            Role::EmbeddingB => "lora_embedding_B",
            Role::Magnitude => "lora_magnitude_vector",
        }
    }
}

/// A tensor of a file by its name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Named {
    /// Part of the adapter of the module of a path.
    Adapter(String, Role),
    /// A whole tensor of the model by its name there, and whether it is the base's own under an adapter.
    Whole(String, bool),
}

/// Reads a name. The name of the adapter, which peft leaves out, may stand in it as in its memory (`lora_A.default.weight`).
pub(super) fn parse(name: &str) -> Named {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    for role in [Role::A, Role::B, Role::EmbeddingA, Role::EmbeddingB, Role::Magnitude] {
        let (part, weight) = role.suffix().split_once('.').map_or((role.suffix(), ""), |(part, _)| (part, ".weight"));
        for suffix in [format!(".{part}{weight}"), format!(".{part}.default{weight}"), format!(".{part}.weight")] {
            if let Some(path) = name.strip_suffix(&suffix) {
                return Named::Adapter(path.to_owned(), role);
            }
        }
    }
    let plain = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
    match plain.rsplit_once('.') {
        Some((before, last)) if before.ends_with(&format!(".{BASE_LAYER}")) => {
            let path = &before[..before.len() - BASE_LAYER.len() - 1];
            Named::Whole(format!("{path}.{last}"), true)
        }
        _ => Named::Whole(plain, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_peft() {
        let adapter = |path: &str, role| Named::Adapter(path.to_owned(), role);
        let experts = "model.layers.0.mlp.experts";
        for (name, expected) in [
            ("base_model.model.model.layers.0.mlp.gate.lora_A.weight", adapter("model.layers.0.mlp.gate", Role::A)),
            ("model.layers.0.mlp.gate.lora_B.default.weight", adapter("model.layers.0.mlp.gate", Role::B)),
            ("base_model.model.lm_head.lora_magnitude_vector", adapter("lm_head", Role::Magnitude)),
            ("base_model.model.lm_head.lora_magnitude_vector.weight", adapter("lm_head", Role::Magnitude)),
            ("base_model.model.model.embed_tokens.lora_embedding_A", adapter("model.embed_tokens", Role::EmbeddingA)),
            (
                "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight",
                adapter(&format!("{experts}.base_layer"), Role::B),
            ),
            ("base_model.model.lm_head.base_layer.weight", Named::Whole("lm_head.weight".into(), true)),
            ("base_model.model.lm_head.weight", Named::Whole("lm_head.weight".into(), false)),
            ("base_model.model.lm_head.modules_to_save.default.weight", Named::Whole("lm_head.weight".into(), false)),
            ("x", Named::Whole("x".into(), false)),
        ] {
            assert_eq!(parse(name), expected, "{name}");
        }
    }
}
