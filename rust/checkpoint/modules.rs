// SPDX-License-Identifier: Apache-2.0
//! Every matrix of the checkpoint by its module, and how it is quantised: what an engine would make of each.

use super::config::Config;
use super::dtype::Dtype;
use super::groups::Group;
use super::header::Tensor;
use super::namings::{FORMATS, UNQUANTISED, beyond_format, quantisation};
use super::text::{as_printable, printable};
use serde::Serialize;
use std::collections::BTreeMap;

/// NVFP4, in any format.
pub const NVFP4: &str = "nvfp4";

/// MXFP4, in any naming.
pub const MXFP4: &str = "mxfp4";

/// Experts that are no NVFP4 layer, or tensors that look like NVFP4 and are not understood.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedLayer {
    /// Their name in the files, up to `.experts`.
    #[serde(serialize_with = "as_printable")]
    pub stem: String,
    /// Their layer's index, if the name has one.
    pub layer: Option<u32>,
    /// Why.
    pub reason: String,
}

/// A linear, or all routed experts of a layer.
#[derive(Debug, Clone, Serialize)]
pub struct Module {
    /// `layers.3.ffn.experts`, `layers.3.attn.wq_a`
    #[serde(serialize_with = "as_printable")]
    pub name: String,
    /// `moe` or `linear`
    pub kind: &'static str,
    /// `nvfp4`, `mxfp4` (of experts), `fp8 or mxfp4`, `other quantisation`, `unquantised`
    pub format: &'static str,
    /// Matrices that have scales.
    pub num_matrices: u64,
    /// Those with an input scale.
    pub num_input_scales: u64,
    /// Why this library's kernels do not compute it, though it is NVFP4 or MXFP4.
    pub refusal: Option<String>,
}

type Tensors<'a> = BTreeMap<&'a str, Option<&'a Tensor>>;

/// The module of a layer's experts; `refusal` is that of its activation.
pub fn of_group(group: &Group, config: &Config, refusal: Option<String>) -> Module {
    let (num_input_scales, num_matrices) = group.input_scales();
    let format = match (group.looks_nvfp4(), group.mxfp4(config).is_some()) {
        (true, _) => NVFP4,
        (false, true) => MXFP4,
        (false, false) => group.other_quantisation(),
    };
    let refusal = group.beyond_format().or(refusal).filter(|_| [NVFP4, MXFP4].contains(&format));
    Module { name: group.path(), kind: "moe", format, num_matrices, num_input_scales, refusal }
}

/// Modules of tensors outside the experts, and those that look like NVFP4 and are none that is known.
pub fn of_others(others: &[(&str, Option<&Tensor>)]) -> (Vec<Module>, Vec<SkippedLayer>) {
    let mut tensors = BTreeMap::<&str, Tensors<'_>>::new();
    for (name, tensor) in others {
        let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
        tensors.entry(module).or_default().insert(part, *tensor);
    }
    let (mut modules, mut unknown) = (Vec::new(), Vec::new());
    for (module, tensors) in &tensors {
        match linear(module, tensors) {
            Some(found) if found.format != NVFP4 && looks_nvfp4(tensors) => {
                unknown.push(not_understood(module, tensors))
            }
            None if looks_nvfp4(tensors) => unknown.push(not_understood(module, tensors)),
            Some(found) if found.format == NVFP4 && !is_matrix(tensors) => {
                unknown.push(not_understood(module, tensors))
            }
            found => modules.extend(found),
        }
    }
    (modules, unknown)
}

fn linear(name: &str, tensors: &Tensors<'_>) -> Option<Module> {
    let has = |tensor: &&str| tensors.contains_key(*tensor);
    let nvfp4 = FORMATS.iter().any(|row| [row.codes, row.block_scale, row.global_scale].iter().all(has));
    let format = if nvfp4 { NVFP4 } else { quantisation(|tensor| tensors.contains_key(tensor))? };
    // A norm has a weight as well, of one extent.
    if format == UNQUANTISED && tensors.get("weight").copied().flatten().is_none_or(|weight| weight.shape.len() < 2) {
        return None;
    }
    let input_scale = FORMATS.iter().any(|row| has(&row.input_scale));
    let beyond = tensors.keys().find_map(|part| Some((part, beyond_format(part)?))).filter(|_| format == NVFP4);
    let refusal = beyond.map(|(part, meaning)| {
        format!("{} is present; {meaning}, and this library does not", printable(format_args!("{name}.{part}")))
    });
    let (name, num_input_scales) = (name.to_owned(), u64::from(input_scale));
    Some(Module { name, kind: "linear", format, num_matrices: 1, num_input_scales, refusal })
}

fn looks_nvfp4(tensors: &Tensors<'_>) -> bool {
    let held = |is: &dyn Fn(&Tensor) -> bool| tensors.values().flatten().any(|tensor| is(tensor));
    let second_level = |name: &&str| FORMATS.iter().any(|row| name.ends_with(row.global_scale));
    let codes = held(&|t| t.shape.len() >= 2 && t.dtype.codes_an_element().is_some());
    let scales = held(&|t| t.shape.len() >= 2 && t.dtype == Dtype::F8_E4M3);
    codes && scales || tensors.keys().any(second_level)
}

fn is_matrix(tensors: &Tensors<'_>) -> bool {
    let codes = FORMATS.iter().find_map(|row| tensors.get(row.codes)).copied().flatten();
    codes.is_none_or(|codes| codes.shape.len() == 2)
}

fn not_understood(module: &str, tensors: &Tensors<'_>) -> SkippedLayer {
    let text = |(name, tensor): (&&str, &Option<&Tensor>)| match tensor {
        Some(tensor) => format!("{name} {} {:?}", tensor.dtype, tensor.shape),
        None => format!("{name} of an absent file"),
    };
    let held: Vec<_> = tensors.iter().map(text).collect();
    let reason = format!("it looks like NVFP4 and no naming that is known has such tensors: {}", held.join(", "));
    SkippedLayer { stem: module.to_owned(), layer: super::names::layer_of(module).ok(), reason: printable(reason) }
}
