// SPDX-License-Identifier: Apache-2.0
//! Every export has the header's prototype: the two are coerced to one function pointer type, so that drift does not
//! compile. A test holds this list to the header.

/// The header's functions, as bindgen reads them.
mod declared {
    use crate::abi::header::*;

    include!("../bindings/prototypes.rs");
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
    library::nvfp4_moe_version();
    library::nvfp4_moe_last_error(_, _);
    library::nvfp4_moe_set_num_threads(_);
    library::nvfp4_moe_cpu_isa(_, _);
    library::nvfp4_moe_build_info(_, _);
    layer::nvfp4_moe_layer_create(_, _);
    layer::nvfp4_moe_layer_destroy(_);
    layer::nvfp4_moe_layer_storage_size(_, _);
    layer::nvfp4_moe_layer_prepare(_, _, _, _, _);
    layer::nvfp4_moe_layer_weight_error(_, _);
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
    format::nvfp4_moe_cast_mxfp4(_, _, _, _, _, _);
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
    use std::collections::BTreeSet;

    #[test]
    fn the_list_is_the_headers() {
        let headers = [include_str!("../../include/nvfp4_moe.h"), include_str!("../../include/nvfp4_moe_checkpoint.h")];
        let declared: BTreeSet<&str> = headers
            .into_iter()
            .flat_map(str::lines)
            .filter(|line| {
                ["int32_t ", "uint32_t ", "uint64_t ", "size_t ", "void "].iter().any(|t| line.starts_with(t))
            })
            .filter_map(|line| line.split(['(', ' ']).find(|word| word.starts_with("nvfp4_moe_")))
            .collect();
        assert!(declared.len() > 30, "{declared:?}");
        assert_eq!(NAMES.iter().copied().collect::<BTreeSet<_>>(), declared);
        assert_eq!(NAMES.len(), declared.len(), "a name is listed twice");
    }
}
