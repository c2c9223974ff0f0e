//! `olmoe bench gemm`: matrix products against the limits of the machine, measured in the same run.

use std::time::{Duration, Instant};

use olmoe_data::counted;
use olmoe_model::model::Precision;
use olmoe_tensor::gemm::{Left, Operand, Right, Source, Store, gemm};
use olmoe_tensor::limits::{peak_flops, read_bandwidth};
use olmoe_tensor::ops::grouped_linear;
use olmoe_tensor::ops::linear::{PackedWeight, Weight};
use olmoe_tensor::simd::Isa;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::num_threads;
use serde_json::json;

use super::{GemmArgs, median};

/// The dense products: rows, outputs, contraction.
const DENSE: [(usize, usize, usize); 4] = [(2048, 2048, 2048), (512, 2048, 2048), (2048, 512, 512), (512, 1024, 2048)];
/// The rows per expert in the grouped products.
pub(super) const GROUPED: [usize; 4] = [1, 8, 32, 64];
/// How many weights one row is multiplied with in turn.
const ROTATING: usize = 32;
/// The experts of the released model: 64 gate projections, 268 MB in bf16, so that each pass reads them from memory.
pub(super) const EXPERTS: usize = 64;
pub(super) const WIDTH: usize = 1024;
pub(super) const INPUT: usize = 2048;

/// The number of rounds; in each, the limits are measured right before the product.
const ROUNDS: usize = 9;
const LIMIT_TIME: Duration = Duration::from_millis(40);
/// In a round, a product is repeated for at least this long.
const PRODUCT_TIME: Duration = Duration::from_millis(60);
/// Large enough to be read from memory, not from a cache.
pub(super) const BANDWIDTH_BYTES: usize = 256 << 20;

/// One line of the table, in operations and bytes per second.
pub(super) struct Row {
    pub(super) what: String,
    /// The format of the factors.
    pub(super) precision: &'static str,
    pub(super) speed: f64,
    pub(super) peak: f64,
    pub(super) bandwidth: Option<f64>,
    /// The median over the rounds of the speed as a share of the limit.
    pub(super) share: f64,
}

pub(super) fn run(args: &GemmArgs) -> anyhow::Result<()> {
    let mut table = Table::new(args.json);
    for precision in args.precisions() {
        let operand = match precision {
            Precision::Fp32 => Operand::F32,
            Precision::AmpBf16 => Operand::Bf16,
        };
        for (m, n, k) in DENSE {
            table.add(dense(precision, operand, m, n, k));
        }
        table.add(rotating(precision, operand));
        for count in GROUPED {
            table.add(grouped(precision, operand, count));
        }
    }
    table.end();
    Ok(())
}

/// Prints rows as they are measured, or all together as JSON.
pub(super) struct Table {
    json: bool,
    rows: Vec<Row>,
}

impl Table {
    pub(super) fn new(json: bool) -> Table {
        if !json {
            let isa = Isa::current().name();
            let threads = counted(num_threads(), "thread");
            println!("{threads}, {isa}; shares are medians of {ROUNDS} rounds, each beside its limits");
            println!(
                "{:<34} {:>9} {:>10} {:>10} {:>9} {:>7}",
                "product", "precision", "GFLOP/s", "peak", "GB/s", "share"
            );
        }
        Table { json, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        if !self.json {
            println!(
                "{:<34} {:>9} {:>10.0} {:>10.0} {:>9} {:>6.1}%",
                row.what,
                row.precision,
                row.speed / 1e9,
                row.peak / 1e9,
                row.bandwidth.map_or("-".to_owned(), |b| format!("{:.1}", b / 1e9)),
                100.0 * row.share
            );
        }
        self.rows.push(row);
    }

    pub(super) fn end(&self) {
        if self.json {
            let rows: Vec<_> = self.rows.iter().map(json_row).collect();
            println!("{}", json!({ "isa": Isa::current().name(), "threads": num_threads(), "rows": rows }));
        }
    }
}

fn json_row(row: &Row) -> serde_json::Value {
    json!({
        "product": row.what,
        "precision": row.precision,
        "flops": row.speed,
        "peak_flops": row.peak,
        "read_bandwidth": row.bandwidth,
        "share": row.share,
    })
}

/// The mean duration of a call in seconds, over some repetitions.
fn seconds_of(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < PRODUCT_TIME {
        call();
        calls += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// Measures a product of this many operations against the peak and, where it reads this many bytes from memory, against
/// what the bandwidth allows.
pub(super) fn measure(
    what: String,
    precision: &'static str,
    flops: f64,
    bytes: Option<usize>,
    peak: impl Fn(Duration) -> f64,
    mut product: impl FnMut(),
) -> Row {
    let (mut speeds, mut peaks, mut bandwidths, mut shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let bandwidth = || bytes.map(|_| read_bandwidth(BANDWIDTH_BYTES, LIMIT_TIME));
    for round in 0..=ROUNDS {
        let peak = peak(LIMIT_TIME);
        let before = bandwidth();
        let speed = flops / seconds_of(&mut product);
        // The first round is a warm-up.
        if round == 0 {
            continue;
        }
        let mut limit = peak;
        if let (Some(before), Some(after), Some(bytes)) = (before, bandwidth(), bytes) {
            // Other machines share the memory, so the bandwidth is measured before and after the product.
            let bandwidth = (before + after) / 2.0;
            bandwidths.push(bandwidth);
            limit = limit.min(bandwidth * flops / bytes as f64);
        }
        speeds.push(speed);
        peaks.push(peak);
        shares.push(speed / limit);
    }
    let bandwidth = bytes.map(|_| median(bandwidths));
    Row { what, precision, speed: median(speeds), peak: median(peaks), bandwidth, share: median(shares) }
}

/// Numbers like those of a layer: small, of both signs.
pub(super) fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// A product of a packed weight with activations; the time includes the packing of the activations.
fn dense(precision: Precision, operand: Operand, m: usize, n: usize, k: usize) -> Row {
    let x = values(m * k);
    let w = Right::from_rows(Source::new(&values(n * k), k), n, k, operand);
    let mut y = Tensor::zeros(&[m, n]);
    let flops = 2.0 * (m * n * k) as f64;
    measure(
        format!("{m} x {n} x {k}"),
        precision.name(),
        flops,
        None,
        |time| peak_flops(operand, time),
        || gemm(&Left::from_rows(Source::new(&x, k), m, k, operand), &w, &mut y, Store::Overwrite),
    )
}

/// One row times one weight after the other, which together exceed the caches.
fn rotating(precision: Precision, operand: Operand) -> Row {
    let x = values(INPUT);
    let source = values(INPUT * INPUT);
    let weights: Vec<_> =
        (0..ROTATING).map(|_| Right::from_rows(Source::new(&source, INPUT), INPUT, INPUT, operand)).collect();
    let mut y = Tensor::zeros(&[1, INPUT]);
    measure(
        format!("1 x {INPUT} x {INPUT}, {ROTATING} weights"),
        precision.name(),
        2.0 * (ROTATING * INPUT * INPUT) as f64,
        Some(weights.iter().map(Right::bytes).sum()),
        |time| peak_flops(operand, time),
        || {
            for w in &weights {
                gemm(&Left::from_rows(Source::new(&x, INPUT), 1, INPUT, operand), w, &mut y, Store::Overwrite);
            }
        },
    )
}

/// Every expert of a layer times `rows` rows of its own.
fn grouped(precision: Precision, operand: Operand, rows: usize) -> Row {
    let mut w = PackedWeight::new(EXPERTS, WIDTH, INPUT, operand, false);
    w.pack(&values(EXPERTS * WIDTH * INPUT));
    let slots = EXPERTS * rows;
    let x = Tensor::new(&values(slots * INPUT), &[slots, INPUT]);
    let offsets: Vec<u32> = (0..=EXPERTS).map(|e| (e * rows) as u32).collect();
    measure(
        format!("{EXPERTS} experts, {rows} x {WIDTH} x {INPUT} each"),
        precision.name(),
        2.0 * (slots * WIDTH * INPUT) as f64,
        Some(w.bytes() + size_of::<f32>() * slots * (INPUT + WIDTH)),
        |time| peak_flops(operand, time),
        || drop(grouped_linear::forward(&x, &offsets, Weight::Packed(&w))),
    )
}
