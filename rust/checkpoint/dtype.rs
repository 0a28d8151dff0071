// SPDX-License-Identifier: Apache-2.0
//! Element types by their safetensors names.

use std::fmt;

/// The reader only needs to tell NVFP4's own from each other and from the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
pub enum Dtype {
    U8,
    I8,
    /// One e2m1 code; a shape counts codes, and a byte holds two.
    F4,
    F8_E4M3,
    F8_E8M0,
    BF16,
    F16,
    F32,
    I32,
    /// Any other, by name; its size is not checked.
    Other(Box<str>),
}

impl Dtype {
    /// By the name in a header. Writers differ in case, and in whether they say that e4m3 has no infinities (`FN`).
    pub fn from_name(name: &str) -> Self {
        match name.to_ascii_uppercase().trim_start_matches("TORCH.") {
            "U8" | "UINT8" => Dtype::U8,
            "I8" | "INT8" => Dtype::I8,
            "F4" | "F4_E2M1" | "F4_E2M1FN" | "FLOAT4_E2M1FN" => Dtype::F4,
            "F8_E4M3" | "F8_E4M3FN" | "FLOAT8_E4M3FN" | "FP8_E4M3" | "E4M3" | "E4M3FN" => Dtype::F8_E4M3,
            "F8_E8M0" | "F8_E8M0FNU" | "FLOAT8_E8M0FNU" => Dtype::F8_E8M0,
            "BF16" | "BFLOAT16" => Dtype::BF16,
            "F16" | "FLOAT16" => Dtype::F16,
            "F32" | "FLOAT32" => Dtype::F32,
            "I32" | "INT32" => Dtype::I32,
            _ => Dtype::Other(name.into()),
        }
    }

    /// Bits of an element.
    pub fn bits(&self) -> Option<u64> {
        match self {
            Dtype::F4 => Some(4),
            Dtype::U8 | Dtype::I8 | Dtype::F8_E4M3 | Dtype::F8_E8M0 => Some(8),
            Dtype::BF16 | Dtype::F16 => Some(16),
            Dtype::F32 | Dtype::I32 => Some(32),
            Dtype::Other(_) => None,
        }
    }

    /// Is it a type of weights that nobody quantised?
    pub fn is_unquantised(&self) -> bool {
        matches!(self, Dtype::BF16 | Dtype::F16 | Dtype::F32)
    }

    /// May it hold e2m1 codes, and how many in an element?
    pub fn codes_an_element(&self) -> Option<u64> {
        match self {
            Dtype::U8 => Some(2),
            Dtype::F4 => Some(1),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dtype::Other(name) => f.write_str(name),
            known => write!(f, "{known:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_under_its_spellings_and_not_its_cousins() {
        for name in ["F8_E4M3", "f8_e4m3fn", "float8_e4m3fn", "torch.float8_e4m3fn"] {
            assert_eq!(Dtype::from_name(name), Dtype::F8_E4M3, "{name}");
        }
        for name in ["F8_E4M3FNUZ", "F8_E5M2", "F8"] {
            assert_eq!(Dtype::from_name(name), Dtype::Other(name.into()));
        }
    }
}
