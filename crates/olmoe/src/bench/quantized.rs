//! `olmoe bench quantized`: products of quantised weights against the limits of the machine, measured in the same run.

use olmoe_tensor::gemm::Store;
use olmoe_tensor::limits::peak_int8;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::quant::product::{GroupedRows, QuantizedFactor, QuantizedInput, QuantizedWeight, product, products};

use super::QuantizedArgs;
use super::gemm::{BANDWIDTH_BYTES, EXPERTS, GROUPED, INPUT, Row, Table, WIDTH, measure, values};

/// The rows of a dense product.
const PROMPT: usize = 512;
/// The experts of a token.
const CHOICES: usize = 8;

pub(super) fn run(args: &QuantizedArgs) {
    let mut table = Table::new(args.json);
    for format in args.formats() {
        table.add(dense(format));
        table.add(rotating(format, INPUT));
        table.add(rotating(format, WIDTH));
        let layers = many(|| weight(format, EXPERTS, WIDTH));
        table.add(token(&layers));
        for rows in GROUPED {
            table.add(grouped(&layers, rows));
        }
    }
    table.end();
}

/// A weight of arbitrary quants and finite scales; the speed does not depend on the values.
fn weight(format: BlockFormat, groups: usize, out: usize) -> QuantizedWeight {
    let mut weight = QuantizedWeight::new(format, groups, out, INPUT);
    let strips = weight.strips();
    let bytes = strips.numbers(0).len() / format.block_len() * format.block_bytes();
    let strip: Vec<u8> = (0..bytes).map(|i| ((i * 7919) % 2003) as u8 & 63).collect();
    for i in 0..strips.count() {
        weight.pack(i..i + 1, &strip);
    }
    weight
}

/// Enough weights that each is read from memory, not from a cache.
fn many(make: impl Fn() -> QuantizedWeight) -> Vec<QuantizedWeight> {
    let first = make();
    let count = BANDWIDTH_BYTES.div_ceil(first.bytes());
    std::iter::once(first).chain((1..count).map(|_| make())).collect()
}

fn bytes(weights: &[QuantizedWeight]) -> usize {
    weights.iter().map(QuantizedWeight::bytes).sum()
}

/// Many rows times one weight; the time includes the packing of the activations.
fn dense(format: BlockFormat) -> Row {
    let (x, w) = (values(PROMPT * INPUT), weight(format, 1, INPUT));
    let mut y = vec![0.0; PROMPT * INPUT];
    measure(
        format!("{PROMPT} x {INPUT} x {INPUT}"),
        format.name(),
        2.0 * (PROMPT * INPUT * INPUT) as f64,
        None,
        peak_int8,
        || product(&QuantizedInput::pack(&x, INPUT, format), &w, &mut y, Store::Overwrite),
    )
}

/// One row times one weight `[out, in]` after the other.
fn rotating(format: BlockFormat, out: usize) -> Row {
    let (x, mut y) = (values(INPUT), vec![0.0; out]);
    let weights = many(|| weight(format, 1, out));
    measure(
        format!("1 x {out} x {INPUT}, {} weights", weights.len()),
        format.name(),
        2.0 * (weights.len() * out * INPUT) as f64,
        Some(bytes(&weights)),
        peak_int8,
        || {
            for w in &weights {
                product(&QuantizedInput::pack(&x, INPUT, format), w, &mut y, Store::Overwrite);
            }
        },
    )
}

/// One token after the other, each with its own experts.
fn token(layers: &[QuantizedWeight]) -> Row {
    let format = layers[0].format();
    let (x, mut y) = (values(INPUT), vec![0.0; CHOICES * WIDTH]);
    let tokens: Vec<Vec<u32>> = (0..EXPERTS / CHOICES)
        .map(|t| (0..=EXPERTS).map(|e| e.saturating_sub(CHOICES * t).min(CHOICES) as u32).collect())
        .collect();
    measure(
        format!("{CHOICES} of {EXPERTS} experts, 1 x {WIDTH} x {INPUT}"),
        format.name(),
        2.0 * (layers.len() * EXPERTS * WIDTH * INPUT) as f64,
        Some(bytes(layers)),
        peak_int8,
        || {
            for (weight, offsets) in layers.iter().flat_map(|layer| tokens.iter().map(move |t| (layer, t))) {
                let rows = GroupedRows { index: Some(&[0; CHOICES]), offsets, first: 0 };
                let x = QuantizedInput::pack(&x, INPUT, format);
                products(&x, rows, [QuantizedFactor { weight, y: &mut y }], Store::Overwrite);
            }
        },
    )
}

/// Every expert of a layer times `rows` of the tokens, each of which has several experts.
fn grouped(layers: &[QuantizedWeight], rows: usize) -> Row {
    let (format, slots) = (layers[0].format(), EXPERTS * rows);
    let tokens = slots / CHOICES;
    let (x, mut y) = (values(tokens * INPUT), vec![0.0; slots * WIDTH]);
    let index: Vec<u32> = (0..slots).map(|s| (s % tokens) as u32).collect();
    let offsets: Vec<u32> = (0..=EXPERTS).map(|e| (e * rows) as u32).collect();
    measure(
        format!("{EXPERTS} experts, {rows} x {WIDTH} x {INPUT} each"),
        format.name(),
        2.0 * (layers.len() * slots * WIDTH * INPUT) as f64,
        Some(bytes(layers) + layers.len() * size_of::<f32>() * (tokens * INPUT + slots * WIDTH)),
        peak_int8,
        || {
            for weight in layers {
                let rows = GroupedRows { index: Some(&index), offsets: &offsets, first: 0 };
                let x = QuantizedInput::pack(&x, INPUT, format);
                products(&x, rows, [QuantizedFactor { weight, y: &mut y }], Store::Overwrite);
            }
        },
    )
}
