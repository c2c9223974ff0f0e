//! The number formats of stored tensors.

/// A number format of safetensors files. The one-byte formats named F8 are copied, never computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are those of the format")]
pub enum SafeType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    BOOL,
    C64,
    F8_E4M3,
    F8_E5M2,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
}

impl SafeType {
    /// All formats.
    pub const ALL: [SafeType; 19] = {
        use SafeType::*;
        [
            F64,
            F32,
            F16,
            BF16,
            I64,
            I32,
            I16,
            I8,
            U64,
            U32,
            U16,
            U8,
            BOOL,
            C64,
            F8_E4M3,
            F8_E5M2,
            F8_E8M0,
            F8_E4M3FNUZ,
            F8_E5M2FNUZ,
        ]
    };

    /// The name of the format in a header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::BOOL => "BOOL",
            Self::C64 => "C64",
            Self::F8_E4M3 => "F8_E4M3",
            Self::F8_E5M2 => "F8_E5M2",
            Self::F8_E8M0 => "F8_E8M0",
            Self::F8_E4M3FNUZ => "F8_E4M3FNUZ",
            Self::F8_E5M2FNUZ => "F8_E5M2FNUZ",
        }
    }

    /// The format with a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The size of a number in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::BOOL => 1,
            Self::F8_E4M3 | Self::F8_E5M2 | Self::F8_E8M0 | Self::F8_E4M3FNUZ | Self::F8_E5M2FNUZ => 1,
        }
    }

    /// The size of a tensor in bytes; None on overflow.
    pub fn bytes(self, shape: &[usize]) -> Option<u64> {
        shape.iter().try_fold(self.size() as u64, |bytes, &extent| bytes.checked_mul(extent as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_those_of_the_format() {
        for kind in SafeType::ALL {
            assert_eq!(SafeType::from_name(kind.name()), Some(kind));
            let theirs: safetensors::Dtype = serde_json::from_str(&format!("{:?}", kind.name())).unwrap();
            assert_eq!(theirs.bitsize(), kind.size() * 8, "{kind:?}");
        }
        assert_eq!(SafeType::from_name("f32"), None);
        assert_eq!(SafeType::F32.bytes(&[]), Some(4));
        assert_eq!(SafeType::F32.bytes(&[2, 0, 3]), Some(0));
        assert_eq!(SafeType::F32.bytes(&[1 << 62]), None);
    }
}
