//! What is trained, what is frozen, and how it is held: counts and bytes.

use std::collections::BTreeMap;

use olmoe_model::adapter::Adapter;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Held, Precision};
use olmoe_model::parameters::{MlpOf, ModulePart, ParameterKind, ParameterSpec};
use olmoe_tensor::encoding::Encoding;
use olmoe_train::finetune::Selection;

use crate::live::short;

/// A row: what it is, trained or not, how its numbers are held; parameters, trained ones, bytes.
type Key = (usize, &'static str, bool, String);

/// The parts of a model, in their order.
const PARTS: [&str; 9] =
    ["embedding", "attention", "norms", "router", "experts", "shared expert", "dense layers", "head", "adapters"];

fn part(spec: &ParameterSpec) -> usize {
    use ModulePart::{Attention, Embedding, Head, Mlp, Router};
    match spec.module.part {
        _ if spec.kind.is_of_adapter() => 8,
        Embedding => 0,
        Attention(_) => 1,
        Router => 3,
        Mlp(MlpOf::Experts, _) => 4,
        Mlp(MlpOf::SharedExpert, _) => 5,
        Mlp(MlpOf::Dense, _) => 6,
        Head => 7,
        _ => 2,
    }
}

/// The table, one line a row.
pub(super) struct Table {
    pub(super) lines: Vec<String>,
    /// Parameters in all, and those that are trained.
    pub(super) all: u64,
    pub(super) trained: u64,
}

impl Table {
    /// Of a model whose parameters, those of adapters included, are `specs`.
    pub(super) fn new(
        config: &ModelConfig,
        specs: &[ParameterSpec],
        selection: &Selection,
        encodings: &[Option<Encoding>],
        precision: Precision,
    ) -> Table {
        let is_trained = |spec: &ParameterSpec| {
            specs.iter().position(|own| own.name == spec.name).is_some_and(|id| selection.is_trained(id))
        };
        let held = Held::of(specs, config, is_trained);
        let mut rows: BTreeMap<Key, (u64, u64, u64)> = BTreeMap::new();
        let (mut all, mut trained) = (0, 0);
        for (id, spec) in specs.iter().enumerate() {
            let numbers = spec.num_elements() as u64;
            all += numbers;
            let learned = match (selection.is_trained(id), selection.experts(id)) {
                (false, _) => 0,
                (true, None) => numbers,
                (true, Some(experts)) => {
                    numbers / experts.len().max(1) as u64 * experts.iter().filter(|one| **one).count() as u64
                }
            };
            trained += learned;
            let is_matrix = matches!(spec.kind, ParameterKind::Linear | ParameterKind::Expert)
                || spec.kind == ParameterKind::Embedding;
            let (how, bytes) = match (held[id], encodings.get(id).copied().flatten()) {
                // Weights, and what a product reads of them.
                (Held::Trained, _) if is_matrix && precision == Precision::AmpBf16 => {
                    ("f32 and bf16".to_owned(), 6 * numbers)
                }
                (Held::Trained, _) => ("f32".to_owned(), 4 * numbers),
                (_, Some(encoding)) => {
                    let bytes = encoding.bytes(spec.num_elements()).map_or(0, |bytes| bytes as u64);
                    (encoding.name().to_owned(), bytes)
                }
                (_, None) if is_matrix && precision == Precision::AmpBf16 => ("bf16".to_owned(), 2 * numbers),
                (_, None) => ("f32".to_owned(), 4 * numbers),
            };
            let at = part(spec);
            let row = rows.entry((at, PARTS[at], learned > 0, how)).or_default();
            *row = (row.0 + numbers, row.1 + learned, row.2 + bytes);
        }
        let mut lines =
            vec![format!("{:<14} {:>10} {:>10}  {:<14} {:>9}", "", "numbers", "trained", "held as", "bytes")];
        for ((_, name, _, how), (numbers, learned, bytes)) in rows {
            let learned = if learned == 0 { "-".to_owned() } else { short(learned as f64) };
            lines.push(format!(
                "{name:<14} {:>10} {learned:>10}  {how:<14} {:>9}",
                short(numbers as f64),
                short(bytes as f64)
            ));
        }
        Table { lines, all, trained }
    }
}

/// What adapters there are, in words.
pub(super) fn adapters(adapters: &[Adapter]) -> Option<String> {
    let first = adapters.first()?;
    let ranks = adapters.iter().map(|adapter| adapter.rank);
    let (least, most) = (ranks.clone().min()?, ranks.max()?);
    let rank = if least == most { format!("rank {least}") } else { format!("ranks {least} to {most}") };
    let kind = if first.dora { "DoRA" } else { "LoRA" };
    let mut names: Vec<String> = Vec::new();
    for adapter in adapters {
        let name = adapter.module.to_string();
        let name = name.rsplit('.').next().unwrap_or(&name).to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Some(format!("{kind} adapters of {rank}, scale {}, on {}", first.scale, names.join(", ")))
}
