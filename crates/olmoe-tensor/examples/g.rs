use olmoe_tensor::{gemm::*, limits::*, memory::Buffer, threads::*};
use std::time::*;
fn main() {
    let ms = Duration::from_millis(300);
    for t in [1, 2] {
        set_num_threads(t);
        println!(
            "threads {t}: f32 {:.0} bf16 {:.0} GF/s read {:.1} GB/s",
            peak_flops(Operand::F32, ms) / 1e9,
            peak_flops(Operand::Bf16, ms) / 1e9,
            read_bandwidth(512 << 20, ms) / 1e9
        );
        for op in [Operand::F32, Operand::Bf16] {
            for (m, n, k) in [(2048, 2048, 2048), (512, 2048, 2048), (2048, 512, 512), (2048, 1536, 512)] {
                let peak = peak_flops(op, ms);
                let a = Buffer::<f32>::zeroed(m * k);
                let b = Buffer::<f32>::zeroed(n * k);
                let mut c = Buffer::<f32>::zeroed(m * n);
                let tp = Instant::now();
                let r = Right::from_rows(Source::new(&b, k), n, k, op);
                let tr = tp.elapsed();
                let mut v = vec![];
                let mut vp = vec![];
                for _ in 0..15 {
                    let t0 = Instant::now();
                    let l = Left::from_rows(Source::new(&a, k), m, k, op);
                    let t1 = t0.elapsed();
                    gemm(&l, &r, &mut c, Into::Overwrite);
                    v.push(t0.elapsed().as_secs_f64());
                    vp.push(t1.as_secs_f64());
                }
                v.sort_by(f64::total_cmp);
                vp.sort_by(f64::total_cmp);
                let f = 2.0 * (m * n * k) as f64;
                let x = v[7];
                println!(
                    "{op:?} {m}x{n}x{k}: {:.0} GF/s {:.1}% of {:.0}; excluding pack {:.1}% packL {:.2}GB/s(src) packR {:?}",
                    f / x / 1e9,
                    100. * f / x / peak,
                    peak / 1e9,
                    100. * f / (x - vp[7]) / peak,
                    (m * k * 4) as f64 / vp[7] / 1e9,
                    tr
                );
            }
        }
    }
}
