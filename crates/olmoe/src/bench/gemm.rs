//! `olmoe bench gemm`: matrix products against the limits of the machine, measured in the same run.

use std::time::{Duration, Instant};

use olmoe_model::model::Precision;
use olmoe_tensor::gemm::{Left, Operand, Right, Source, Store, gemm};
use olmoe_tensor::limits::{peak_flops, read_bandwidth};
use olmoe_tensor::ops::grouped_linear;
use olmoe_tensor::ops::linear::PackedWeight;
use olmoe_tensor::simd::Isa;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::num_threads;
use serde_json::json;

use super::{GemmArgs, median};

/// Dense products: rows, outputs, contraction.
const DENSE: [(usize, usize, usize); 4] = [(2048, 2048, 2048), (512, 2048, 2048), (2048, 512, 512), (512, 1024, 2048)];
/// Rows that each expert gets in the grouped products.
const GROUPED: [usize; 4] = [1, 8, 32, 64];
/// The experts of the release model: 64 gate projections, 268 MB in bf16, so each pass reads them from memory.
const EXPERTS: usize = 64;
const WIDTH: usize = 1024;
const INPUT: usize = 2048;

/// Rounds; in each, the limits are measured right before the product.
const ROUNDS: usize = 9;
const LIMIT_TIME: Duration = Duration::from_millis(40);
/// A product is repeated for at least this long in a round.
const PRODUCT_TIME: Duration = Duration::from_millis(60);
/// Enough to be sure that the read comes from memory.
const BANDWIDTH_BYTES: usize = 256 << 20;

/// One line of the table, in operations and bytes per second.
struct Row {
    what: String,
    precision: Precision,
    speed: f64,
    peak: f64,
    bandwidth: Option<f64>,
    /// Median over the rounds of speed over limit.
    share: f64,
}

pub(super) fn run(args: &GemmArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    if !args.json {
        println!(
            "{} threads, {}; shares are medians of {ROUNDS} rounds, each beside its limits",
            num_threads(),
            Isa::current().name()
        );
        println!("{:<34} {:>9} {:>10} {:>10} {:>9} {:>7}", "product", "precision", "GFLOP/s", "peak", "GB/s", "share");
    }
    for precision in args.precisions() {
        let operand = match precision {
            Precision::Fp32 => Operand::F32,
            Precision::AmpBf16 => Operand::Bf16,
        };
        for (m, n, k) in DENSE {
            rows.push(dense(precision, operand, m, n, k));
            show(args, rows.last());
        }
        for count in GROUPED {
            rows.push(grouped(precision, operand, count));
            show(args, rows.last());
        }
    }
    if args.json {
        let rows: Vec<_> = rows.iter().map(json_row).collect();
        println!("{}", json!({ "isa": Isa::current().name(), "threads": num_threads(), "rows": rows }));
    }
    Ok(())
}

fn json_row(row: &Row) -> serde_json::Value {
    json!({
        "product": row.what,
        "precision": row.precision.name(),
        "flops": row.speed,
        "peak_flops": row.peak,
        "read_bandwidth": row.bandwidth,
        "share": row.share,
    })
}

fn show(args: &GemmArgs, row: Option<&Row>) {
    if let (false, Some(row)) = (args.json, row) {
        println!(
            "{:<34} {:>9} {:>10.0} {:>10.0} {:>9} {:>6.1}%",
            row.what,
            row.precision.name(),
            row.speed / 1e9,
            row.peak / 1e9,
            row.bandwidth.map_or("-".to_owned(), |b| format!("{:.1}", b / 1e9)),
            100.0 * row.share
        );
    }
}

/// Seconds of one call, the mean over a time.
fn seconds_of(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < PRODUCT_TIME {
        call();
        calls += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// Numbers like a layer's: small, of both signs.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// A product of a packed weight with activations, whose packing counts.
fn dense(precision: Precision, operand: Operand, m: usize, n: usize, k: usize) -> Row {
    let x = Tensor::new(&values(m * k), &[m, k]);
    let w = Right::from_rows(Source::new(&values(n * k), k), n, k, operand);
    let mut y = Tensor::zeros(&[m, n]);
    let (mut speeds, mut peaks, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let peak = peak_flops(operand, LIMIT_TIME);
        let seconds =
            seconds_of(|| gemm(&Left::from_rows(Source::new(&x, k), m, k, operand), &w, &mut y, Store::Overwrite));
        // The first round warms up.
        if round > 0 {
            let speed = 2.0 * (m * n * k) as f64 / seconds;
            speeds.push(speed);
            peaks.push(peak);
            shares.push(speed / peak);
        }
    }
    let what = format!("{m} x {n} x {k}");
    Row { what, precision, speed: median(speeds), peak: median(peaks), bandwidth: None, share: median(shares) }
}

/// Every expert of a layer times `rows` rows of its own; the limit is the lower of the peak and what the bandwidth feeds.
fn grouped(precision: Precision, operand: Operand, rows: usize) -> Row {
    let mut w = PackedWeight::new(EXPERTS, WIDTH, INPUT, operand, false);
    w.pack(&values(EXPERTS * WIDTH * INPUT));
    let slots = EXPERTS * rows;
    let x = Tensor::new(&values(slots * INPUT), &[slots, INPUT]);
    let offsets: Vec<u32> = (0..=EXPERTS).map(|e| (e * rows) as u32).collect();
    let flops = 2.0 * (slots * WIDTH * INPUT) as f64;
    let bytes = (w.bytes() + size_of::<f32>() * slots * (INPUT + WIDTH)) as f64;
    let (mut speeds, mut peaks, mut bandwidths, mut shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let peak = peak_flops(operand, LIMIT_TIME);
        let before = read_bandwidth(BANDWIDTH_BYTES, LIMIT_TIME);
        let seconds = seconds_of(|| drop(grouped_linear::forward(&x, &offsets, &w)));
        // Memory is shared with other machines: measured on both sides of the product.
        let bandwidth = (before + read_bandwidth(BANDWIDTH_BYTES, LIMIT_TIME)) / 2.0;
        if round > 0 {
            let speed = flops / seconds;
            speeds.push(speed);
            peaks.push(peak);
            bandwidths.push(bandwidth);
            shares.push(speed / peak.min(bandwidth * flops / bytes));
        }
    }
    Row {
        what: format!("{EXPERTS} experts, {rows} x {WIDTH} x {INPUT} each"),
        precision,
        speed: median(speeds),
        peak: median(peaks),
        bandwidth: Some(median(bandwidths)),
        share: median(shares),
    }
}
