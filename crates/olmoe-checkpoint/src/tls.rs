//! Encrypted connections: their cryptography, and the processors that it runs on.

use std::sync::Arc;

use ureq::tls::TlsConfig;

/// What a client needs to speak TLS.
pub fn config() -> TlsConfig {
    TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider())).build()
}

/// Refuses where the cryptography would end the program.
///
/// # Errors
/// The features that the processor lacks.
pub fn check_processor() -> Result<(), &'static str> {
    #[cfg(target_arch = "x86_64")]
    let (needs, there) = {
        use std::arch::is_x86_feature_detected as has;
        let there = has!("aes") && has!("pclmulqdq") && has!("bmi1") && has!("bmi2") && has!("adx") && has!("avx2");
        ("AES, ADX and AVX2", there)
    };
    #[cfg(target_arch = "aarch64")]
    let (needs, there) = {
        use std::arch::is_aarch64_feature_detected as has;
        ("NEON, AES and SHA-2", has!("neon") && has!("aes") && has!("pmull") && has!("sha2"))
    };
    if there { Ok(()) } else { Err(needs) }
}
