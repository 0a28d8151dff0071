//! Every export has the header's prototype: the two are coerced to one function pointer type, so that drift does not
//! compile. A test holds this list to the header.

/// The header's functions, as bindgen reads them.
#[allow(missing_docs)]
mod declared {
    use crate::abi::header::*;

    include!(concat!(env!("OUT_DIR"), "/prototypes.rs"));
}

macro_rules! same_prototypes {
    ($($module:ident :: $name:ident($($argument:tt),*);)*) => {
        $(const _: () = {
            let _: [unsafe extern "C" fn($($argument),*) -> _; 2] = [declared::$name, super::$module::$name];
        };)*

        #[cfg(test)]
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

same_prototypes! {
    status::nvfp4_moe_version();
    status::nvfp4_moe_last_error(_, _);
    status::nvfp4_moe_set_num_threads(_);
    status::nvfp4_moe_cpu_isa(_, _);
    layer::nvfp4_moe_layer_create(_, _);
    layer::nvfp4_moe_layer_destroy(_);
    layer::nvfp4_moe_layer_storage_size(_, _);
    layer::nvfp4_moe_layer_prepare(_, _, _, _, _);
    layer::nvfp4_moe_layer_workspace_size(_, _, _);
    layer::nvfp4_moe_layer_forward(_, _, _);
    layer::nvfp4_moe_layer_calibrate(_, _, _);
    layer::nvfp4_moe_layer_calibrated_scales(_, _, _);
    layer::nvfp4_moe_layer_set_input_scales(_, _, _);
    linear::nvfp4_moe_linear_create(_, _);
    linear::nvfp4_moe_linear_destroy(_);
    linear::nvfp4_moe_linear_storage_size(_, _);
    linear::nvfp4_moe_linear_prepare(_, _, _, _, _);
    linear::nvfp4_moe_linear_workspace_size(_, _, _);
    linear::nvfp4_moe_linear_forward(_, _, _);
    linear::nvfp4_moe_linear_calibrate(_, _, _);
    linear::nvfp4_moe_linear_calibrated_scale(_, _);
    linear::nvfp4_moe_linear_set_input_scale(_, _);
    status::nvfp4_moe_device_status_read(_, _, _, _);
    status::nvfp4_moe_device_status_reset(_, _, _);
    format::nvfp4_moe_quantize(_);
    format::nvfp4_moe_dequantize(_, _, _, _, _, _);
    format::nvfp4_moe_sf_size(_, _);
    format::nvfp4_moe_sf_offset(_, _, _);
    checkpoint::nvfp4_moe_checkpoint_open(_, _);
    checkpoint::nvfp4_moe_checkpoint_open_prefix(_, _, _);
    checkpoint::nvfp4_moe_checkpoint_destroy(_);
    checkpoint::nvfp4_moe_checkpoint_layer_info_read(_, _, _);
    checkpoint::nvfp4_moe_checkpoint_read_layer(_, _, _);
    checkpoint::nvfp4_moe_checkpoint_inspect(_, _, _, _, _);
}

#[cfg(test)]
mod tests {
    use super::NAMES;
    use crate::{abi::guard, error::Error};
    use std::collections::BTreeSet;

    #[test]
    fn the_list_is_the_headers() {
        let header = include_str!("../../include/nvfp4_moe.h");
        let declared: BTreeSet<&str> = header
            .lines()
            .filter(|line| {
                ["int32_t ", "uint32_t ", "uint64_t ", "size_t ", "void "].iter().any(|t| line.starts_with(t))
            })
            .filter_map(|line| line.split(['(', ' ']).find(|word| word.starts_with("nvfp4_moe_")))
            .collect();
        assert!(declared.len() > 30, "{declared:?}");
        assert_eq!(NAMES.iter().copied().collect::<BTreeSet<_>>(), declared);
        assert_eq!(NAMES.len(), declared.len(), "a name is listed twice");
    }

    #[test]
    fn a_panic_becomes_internal_with_its_text() {
        let last_error = || super::super::LAST_ERROR.with(|last| last.borrow().clone());
        assert_eq!(guard(|| panic!("row {} is missing", 7)), 8);
        assert!(last_error().contains("row 7 is missing"), "{}", last_error());
        assert_eq!(guard(|| panic!("no numbers")), 8);
        assert!(last_error().contains("no numbers"), "{}", last_error());
        assert_eq!(guard(|| Ok(())), 0);
        assert!(last_error().contains("no numbers"), "a success clears nothing");
        assert_eq!(guard(|| Err(Error::argument("k", 0, "it must be at least 1", "Pass top_k."))), 1);
        assert_eq!(last_error(), "k is 0; it must be at least 1. Pass top_k.");
    }
}
