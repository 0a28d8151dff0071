// SPDX-License-Identifier: Apache-2.0
//! A tensor's name, taken apart by the [table of namings](super::namings).

use super::namings::{Form, all_projections};

/// `STEM.FORM.TENSOR` of a routed expert.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// `layers.3.ffn`, `model.layers.3.mlp`, `mtp.0.ffn`, ...
    pub stem: &'a str,
    /// How number and projection follow each other.
    pub form: Form,
    /// Whose number it is; 0 where a tensor holds all experts.
    pub expert: u32,
    /// `gate_proj`, or a name that no table has.
    pub projection: &'a str,
    /// `weight_scale`; empty where the name ends with the projection, which then names the weight itself.
    pub tensor: &'a str,
}

/// Take a name apart; `None` if it is no routed expert's. `is_stack` tells of a module whether its weight has 3 extents:
/// in a block that is called `moe`, one with 2 is a linear.
pub fn split(name: &str, is_stack: impl Fn(&str) -> bool) -> Option<Parts<'_>> {
    if let Some((stem, rest)) = name.split_once(".experts.") {
        let (first, after) = rest.split_once('.').unwrap_or((rest, ""));
        let (second, tensor) = after.split_once('.').unwrap_or((after, ""));
        if is_number(first) {
            let expert = first.parse().ok()?;
            return Some(Parts { stem, form: Form::ExpertFirst, expert, projection: second, tensor });
        }
        if is_number(second) {
            let expert = second.parse().ok()?;
            return Some(Parts { stem, form: Form::ProjectionFirst, expert, projection: first, tensor });
        }
        let (projection, tensor) = split_stacked(rest);
        return Some(Parts { stem, form: Form::Stacked, expert: 0, projection, tensor });
    }
    let (stem, rest) = name.split_once(".moe.")?;
    let (projection, tensor) = split_stacked(rest);
    let module = &name[..stem.len() + ".moe.".len() + projection.len()];
    let stacked = all_projections().any(|known| known == projection) && is_stack(module);
    stacked.then_some(Parts { stem, form: Form::StackedInBlock, expert: 0, projection, tensor })
}

/// `gate_up_proj`, `gate_up_proj.weight_scale` or `gate_up_proj_weight_scale`: projection and tensor.
fn split_stacked(rest: &str) -> (&str, &str) {
    for projection in all_projections() {
        match rest.strip_prefix(projection) {
            Some("") => return (projection, ""),
            Some(tail) if tail.starts_with(['.', '_']) => return (projection, &tail[1..]),
            _ => {}
        }
    }
    rest.split_once('.').unwrap_or((rest, ""))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The layer's index if the stem has one number, and is no multi-token-prediction head or draft model.
pub fn layer_of(stem: &str) -> Result<u32, String> {
    const HEADS: [&str; 4] = ["mtp", "nextn", "eagle", "draft"];
    let parts = || stem.split('.');
    if let Some(head) = parts().find(|part| HEADS.contains(part)) {
        return Err(format!("it is part of {head}, none of the model's main layers"));
    }
    let mut numbers = parts().filter(|part| is_number(part)).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(layer)), None) => Ok(layer),
        (Some(_), Some(_)) => Err("its name has two numbers, so which layer it is cannot be told".to_owned()),
        _ => Err("its name has no layer's number (layers.N)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_under_any_prefix() {
        let parts = |stem, form, expert, projection, tensor| Some(Parts { stem, form, expert, projection, tensor });
        for (name, rank, expected) in [
            ("layers.3.ffn.experts.17.w1.weight", 2, parts("layers.3.ffn", Form::ExpertFirst, 17, "w1", "weight")),
            ("a.layers.3.experts.1.up_proj.b", 2, parts("a.layers.3", Form::ExpertFirst, 1, "up_proj", "b")),
            ("l.3.mlp.experts.up_proj.1.b.c", 2, parts("l.3.mlp", Form::ProjectionFirst, 1, "up_proj", "b.c")),
            ("l.3.mlp.experts.gate_up_proj", 3, parts("l.3.mlp", Form::Stacked, 0, "gate_up_proj", "")),
            (
                "l.3.mlp.experts.down_proj_weight_scale_2",
                0,
                parts("l.3.mlp", Form::Stacked, 0, "down_proj", "weight_scale_2"),
            ),
            ("l.3.mlp.experts.w1.weight", 3, parts("l.3.mlp", Form::Stacked, 0, "w1", "weight")),
            ("l.3.mlp.experts.4.fc1.weight", 2, parts("l.3.mlp", Form::ExpertFirst, 4, "fc1", "weight")),
            ("l.3.moe.gate_proj.weight", 3, parts("l.3", Form::StackedInBlock, 0, "gate_proj", "weight")),
            ("l.3.moe.gate_proj.weight", 2, None),
            ("l.3.moe.gate.weight", 3, None),
            ("layers.3.ffn.shared_experts.w1.weight", 2, None),
            ("layers.3.ffn.gate.weight", 2, None),
            ("layers.3.mlp.experts.99999999999.w1.weight", 2, None),
            ("experts.0.w1.weight", 2, None),
        ] {
            assert_eq!(split(name, |_| rank == 3), expected, "{name}");
        }
    }

    #[test]
    fn a_layer_is_the_one_number_of_its_stem() {
        for (stem, layer) in [
            ("layers.3.ffn", Ok(3)),
            ("model.layers.60.mlp", Ok(60)),
            ("model.language_model.layers.0", Ok(0)),
            ("backbone.layers.1.mixer", Ok(1)),
            ("transformer.h.7.ffn.moe", Ok(7)),
            ("mtp.0.ffn", Err("part of mtp")),
            ("mtp.layers.0.mlp", Err("part of mtp")),
            ("layers.x.mlp", Err("no layer's number")),
            ("decoder.1.layers.2.mlp", Err("two numbers")),
            ("layers.99999999999.mlp", Err("no layer's number")),
        ] {
            match (layer_of(stem), layer) {
                (Ok(found), Ok(layer)) => assert_eq!(found, layer, "{stem}"),
                (Err(found), Err(reason)) => assert!(found.contains(reason), "{stem}: {found}"),
                (found, _) => panic!("{stem}: {found:?}"),
            }
        }
    }
}
