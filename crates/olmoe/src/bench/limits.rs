//! `olmoe bench limits`: the limits of the machine alone.

use std::time::Duration;

use olmoe_data::counted;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::limits::{peak_flops, peak_int8, read_bandwidth};
use olmoe_tensor::simd::Isa;
use olmoe_tensor::threads::num_threads;
use serde_json::json;

use super::{LimitsArgs, READ_BYTES};

const TIME: Duration = Duration::from_millis(300);

pub(super) fn run(args: &LimitsArgs) {
    let bandwidth = read_bandwidth(READ_BYTES, TIME);
    let [f32, bf16] = [Operand::F32, Operand::Bf16].map(|operand| peak_flops(operand, TIME));
    let int8 = peak_int8(TIME);
    if args.json {
        let peaks = json!({ "fp32": f32, "bf16": bf16, "int8": int8 });
        let report = json!({
            "isa": Isa::current().name(), "threads": num_threads(), "read_bandwidth": bandwidth, "peak_flops": peaks,
        });
        println!("{report}");
    } else {
        println!(
            "read bandwidth {:.1} GB/s; multiply-adds, as operations: f32 {:.0}, bf16 {:.0}, 8 bits {:.0} GFLOP/s; {}, {}",
            bandwidth / 1e9,
            f32 / 1e9,
            bf16 / 1e9,
            int8 / 1e9,
            counted(num_threads(), "thread"),
            Isa::current().name()
        );
    }
}
