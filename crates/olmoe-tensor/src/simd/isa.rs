//! Which instruction set the kernels use.

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(target_arch = "aarch64")]
use super::Neon;
use super::Scalar;
#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    /// Plain Rust: the oracle.
    Scalar(Scalar),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// The same and AVX-VNNI, for the products of quantised weights.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2),
    /// AVX-512 F, BW, VL, DQ and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// The same and BF16, for products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// The names of all sets of all architectures, those of one slowest first.
const NAMES: [&str; 6] = ["scalar", "avx2", "avx_vnni", "avx512", "avx512_bf16", "neon"];

/// A name that is no instruction set, or one that this processor lacks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnknownIsa {
    /// Not one of the names.
    #[error("instruction set {0:?}: expected one of {names} (environment variable OLMOE_ISA)", names = NAMES.join(", "))]
    Name(String),
    /// The processor lacks it.
    #[error("instruction set {0:?}: this processor does not have it; it has {1} (unset OLMOE_ISA to use the best)")]
    Missing(String, String),
}

const UNSET: u8 = 0;
static CURRENT: AtomicU8 = AtomicU8::new(UNSET);

impl Isa {
    /// Those this processor has, slowest first.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Scalar(Scalar::new())];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Isa::Avx2));
            all.extend(Avx2::detect_vnni().map(Isa::AvxVnni));
            all.extend(Avx512::detect().map(Isa::Avx512));
            all.extend(Avx512::detect_bf16().map(Isa::Avx512Bf16));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Isa::Neon));
        all
    }

    /// `scalar`, `avx2`, `avx_vnni`, `avx512`, `avx512_bf16` or `neon`.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.code() - 1)]
    }

    /// Whether pairs of bf16 are multiplied by one instruction.
    pub(crate) fn multiplies_bf16_pairs(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => true,
            _ => false,
        }
    }

    /// Whether a vector is one register.
    pub(crate) fn is_wide(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) | Isa::Avx512Bf16(_) => true,
            _ => false,
        }
    }

    /// The instruction set of that name.
    pub fn by_name(name: &str) -> Result<Isa, UnknownIsa> {
        let lower = name.to_ascii_lowercase();
        if !NAMES.contains(&lower.as_str()) {
            return Err(UnknownIsa::Name(name.to_owned()));
        }
        let available = Isa::available();
        available.iter().copied().find(|isa| isa.name() == lower).ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            UnknownIsa::Missing(name.to_owned(), names.join(", "))
        })
    }

    /// The one in use: set by [`Isa::select`], else by the environment variable `OLMOE_ISA`, else the best there is.
    ///
    /// A bad value of the variable is ignored here, because kernels cannot fail; [`Isa::from_environment`] reports it.
    #[inline]
    pub fn current() -> Isa {
        match CURRENT.load(Ordering::Relaxed) {
            UNSET => {
                let isa = Isa::from_environment().unwrap_or_else(|_| Isa::best());
                isa.select();
                isa
            }
            code => Isa::from_code(code),
        }
    }

    /// What `OLMOE_ISA` asks for, else the best there is.
    pub fn from_environment() -> Result<Isa, UnknownIsa> {
        match std::env::var("OLMOE_ISA") {
            Ok(name) if !name.is_empty() => Isa::by_name(&name),
            _ => Ok(Isa::best()),
        }
    }

    /// Uses this one from now on, in the whole process.
    pub fn select(self) {
        CURRENT.store(self.code(), Ordering::Relaxed);
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Isa {
        if let Some(avx512) = Avx512::detect() {
            return match Avx512::detect_bf16() {
                Some(bf16) if bf16.pairs_are_fast() => Isa::Avx512Bf16(bf16),
                _ => Isa::Avx512(avx512),
            };
        }
        let narrow = Avx2::detect_vnni().map(Isa::AvxVnni).or_else(|| Avx2::detect().map(Isa::Avx2));
        narrow.unwrap_or(Isa::Scalar(Scalar::new()))
    }

    #[cfg(target_arch = "aarch64")]
    fn best() -> Isa {
        Neon::detect().map_or(Isa::Scalar(Scalar::new()), Isa::Neon)
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn best() -> Isa {
        Isa::Scalar(Scalar::new())
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Isa::Scalar(_) => 1,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => 2,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(_) => 3,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => 5,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => 6,
        }
    }

    pub(super) fn from_code(code: u8) -> Isa {
        match code {
            // SAFETY: the code was stored by `select`, from a token that `detect` gave.
            #[cfg(target_arch = "x86_64")]
            2 => Isa::Avx2(unsafe { Avx2::assume() }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            3 => Isa::AvxVnni(unsafe { Avx2::assume() }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            4 => Isa::Avx512(unsafe { Avx512::assume() }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            5 => Isa::Avx512Bf16(unsafe { Avx512::assume() }),
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            6 => Isa::Neon(unsafe { Neon::assume() }),
            _ => Isa::Scalar(Scalar::new()),
        }
    }
}
