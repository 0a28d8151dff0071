// SPDX-License-Identifier: Apache-2.0
//! Sizes of a layer: the tensors tell them, and the config is held against that.

use super::config::{Facts, Said};
use super::dims::{Dims, Projection};
use super::namings::Tensors;
use super::pieces::{Pieces, refuse_unquantised};
use super::text::{fault, printable};
use crate::error::Result;

const RIGHT_CONFIG: &str = "Use the config.json that came with these weights.";

/// Sizes from expert 0's matrices, held against the config where it says; every other tensor is held against them.
///
/// A number of the config that stands for the whole model refuses a layer that contradicts it. One that was picked out of
/// a list, or is of another kind than expected, is only noted: which one is this layer's was a guess.
pub fn read_dims(pieces: Pieces<'_>, facts: &mut Facts, tensors: &Tensors) -> Result<Dims> {
    let group = pieces.group;
    let first = Projection::of_expert(group.is_gated())[0];
    refuse_unquantised(pieces, 0, first, tensors)?;
    let name = group.tensor(0, first, tensors.codes);
    let tensor = pieces.files.get(&name)?;
    let shape = &tensor.shape;
    if tensors.codes_an_element(&tensor.dtype).is_none() {
        let value = format_args!("{} {shape:?}", tensor.dtype);
        let rule = "e2m1 codes must be U8, two in a byte, or F4";
        return Err(fault(&name, value, rule, "Run the layer with the model's own kernels, or export it in NVFP4."));
    }
    let of_expert = if group.is_stacked() { shape.get(1..).unwrap_or_default() } else { shape };
    let Some([rows, hidden_size]) = tensors.matrix(&tensor.dtype, of_expert, group.is_by_columns()) else {
        let stack = if group.is_stacked() { "experts, " } else { "" };
        return Err(fault(
            &name,
            format_args!("of shape {shape:?}"),
            format_args!("it must have the extents ({stack}rows, {})", tensors.columns_in_words()),
            "Export the checkpoint again.",
        ));
    };
    let intermediate_size = if group.is_fused() { rows / 2 } else { rows };
    let sizes = [
        ("hidden_size", hidden_size, facts.hidden_sizes.clone()),
        ("intermediate_size", intermediate_size, facts.intermediate_size.iter().cloned().collect()),
    ];
    for (what, size, configured) in sizes {
        let block = tensors.block_size() as u64;
        let value = format!("{shape:?}, so {what} is {size}");
        if size == 0 || !size.is_multiple_of(block) || size > i32::MAX as u64 {
            let rule = format_args!("it must be a positive multiple of {block}");
            return Err(fault(&name, value, rule, "Pad the model's weights, then export it again."));
        }
        // A model may have several sizes of that name's kind: its own, and that of experts in a latent space.
        if let Some(said) = configured.first()
            && configured.iter().all(|said| said.size != size)
        {
            contradiction(facts, said, || (name.clone(), value))?;
        }
    }
    let num_experts = number_of_experts(pieces, facts)?;
    let (hidden_size, intermediate_size) = (hidden_size as usize, intermediate_size as usize);
    Ok(Dims { num_experts, hidden_size, intermediate_size, gated: group.is_gated() })
}

fn number_of_experts(pieces: Pieces<'_>, facts: &mut Facts) -> Result<usize> {
    let found = pieces.group.num_experts;
    let Some(said) = facts.num_experts.clone() else { return Ok(found as usize) };
    if said.size < found || said.size > found && (pieces.group.is_stacked() || !said.is_certain) {
        contradiction(facts, &said, || (pieces.group.path(), format!("{found} experts")))?;
        return Ok(found as usize);
    }
    Ok(said.size as usize) // too few experts show as missing tensors, by name
}

/// Refuse what contradicts the config, or note it where the config is read by a guess.
fn contradiction(facts: &mut Facts, said: &Said, found: impl FnOnce() -> (String, String)) -> Result<()> {
    let (name, value) = found();
    if said.is_certain {
        return Err(fault(name, value, format_args!("config.json says {}", said.size), RIGHT_CONFIG));
    }
    facts.notes.push(printable(format_args!(
        "{} in config.json is a list, and {} of it is not what {name} has ({value}); the weights decide. Nothing to do.",
        said.key, said.size
    )));
    Ok(())
}
