//! Which tensors are routed experts, and in which format.

use super::config::Config;
use super::files::Files;
use super::header::Dtype;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Naming and scale convention of a layer's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// NVIDIA ModelOpt; both second-level scales decode.
    Modelopt,
    /// compressed-tensors `nvfp4-pack-quantized`; both second-level scales ENCODE.
    CompressedTensors,
    /// ModelOpt's tensors in a model whose config says FP8, with NVFP4 for the experts alone.
    DeepseekV4Mixed,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Format::Modelopt => "modelopt",
            Format::CompressedTensors => "compressed-tensors",
            Format::DeepseekV4Mixed => "deepseek-v4-mixed",
        })
    }
}

/// The three matrices of an expert, in the order in which the reader keeps their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// `[I, H]`
    Gate,
    /// `[I, H]`
    Up,
    /// `[H, I]`
    Down,
}

impl Projection {
    /// All three.
    pub const ALL: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];
}

/// Suffixes of one matrix's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Suffixes {
    /// e2m1x2 codes.
    pub codes: &'static str,
    /// e4m3 block scales.
    pub block_scale: &'static str,
    /// f32 scale of the weight.
    pub global_scale: &'static str,
    /// f32 scale of the activations.
    pub input_scale: &'static str,
    /// Are both f32 scales the inverse of what decodes?
    pub inverse: bool,
}

impl Format {
    /// The tensors of one matrix in this format.
    pub fn suffixes(self) -> Suffixes {
        match self {
            Format::Modelopt | Format::DeepseekV4Mixed => Suffixes {
                codes: "weight",
                block_scale: "weight_scale",
                global_scale: "weight_scale_2",
                input_scale: "input_scale",
                inverse: false,
            },
            Format::CompressedTensors => Suffixes {
                codes: "weight_packed",
                block_scale: "weight_scale",
                global_scale: "weight_global_scale",
                input_scale: "input_global_scale",
                inverse: true,
            },
        }
    }
}

/// All tensors `STEM.experts.E.PROJECTION.SUFFIX` of one stem.
#[derive(Debug)]
pub struct Group {
    /// `layers.3.ffn`, `model.layers.3.mlp`, `mtp.0.ffn`, ...
    pub stem: String,
    /// The largest E, plus one.
    pub num_experts: u64,
    /// Are the projections called w1, w3, w2 (and not gate_proj, up_proj, down_proj)?
    numbered: bool,
    /// Each suffix with the dtype of the first tensor that has it (none if its file is absent) and its name.
    suffixes: BTreeMap<String, (Option<Dtype>, String)>,
}

impl Group {
    /// `STEM.experts.E.PROJECTION.SUFFIX`
    pub fn tensor(&self, expert: usize, projection: Projection, suffix: &str) -> String {
        let projection = match (projection, self.numbered) {
            (Projection::Gate, true) => "w1",
            (Projection::Up, true) => "w3",
            (Projection::Down, true) => "w2",
            (Projection::Gate, false) => "gate_proj",
            (Projection::Up, false) => "up_proj",
            (Projection::Down, false) => "down_proj",
        };
        format!("{}.experts.{expert}.{projection}.{suffix}", self.stem)
    }

    /// The layer's index if the stem is `[PREFIX.]layers.N.BLOCK` and no multi-token-prediction head.
    pub fn layer(&self) -> Option<u32> {
        let parts: Vec<_> = self.stem.split('.').collect();
        match parts[..] {
            [ref prefix @ .., "layers", index, _] if !prefix.contains(&"mtp") => index.parse().ok(),
            _ => None,
        }
    }

    /// The NVFP4 format, or why this is none.
    pub fn format(&self, config: &Config) -> Result<Format, String> {
        let dtype = |suffix: &str| self.suffixes.get(suffix).and_then(|(dtype, _)| dtype.as_ref());
        let has = |suffix: &str| self.suffixes.contains_key(suffix);
        let block_scaled = dtype("weight_scale") == Some(&Dtype::F8_E4M3);
        if has("weight_global_scale") || block_scaled && dtype("weight_packed") == Some(&Dtype::U8) {
            return Ok(Format::CompressedTensors);
        }
        if has("weight_scale_2") || block_scaled && dtype("weight") == Some(&Dtype::U8) {
            let mixed = config.is_fp8_with_nvfp4_experts();
            return Ok(if mixed { Format::DeepseekV4Mixed } else { Format::Modelopt });
        }
        let dtype = |dtype: &Option<Dtype>| dtype.as_ref().map_or("of an absent file".to_owned(), Dtype::to_string);
        let held: Vec<_> = self.suffixes.iter().map(|(suffix, (d, _))| format!("{suffix} {}", dtype(d))).collect();
        let mxfp4 = self.suffixes.values().any(|(dtype, _)| *dtype == Some(Dtype::F8_E8M0));
        let guess = if mxfp4 { ", as MXFP4 and FP8 do" } else { "" };
        Err(format!("its experts hold {}{guess}; NVFP4 has U8 codes with F8_E4M3 block scales", held.join(", ")))
    }

    /// The name of a tensor that the format does not know; to ignore it could change the layer's result.
    pub fn unknown_tensor(&self, format: Format) -> Option<&str> {
        let Suffixes { codes, block_scale, global_scale, input_scale, .. } = format.suffixes();
        let known = |suffix: &str| [codes, block_scale, global_scale, input_scale].contains(&suffix);
        self.suffixes.iter().find(|(suffix, _)| !known(suffix)).map(|(_, (_, name))| name.as_str())
    }
}

/// Every group of routed experts, in order of layer.
pub fn find_groups(files: &Files) -> Vec<Group> {
    let mut groups = BTreeMap::<&str, Group>::new();
    for (name, dtype) in files.names() {
        let Some(parts) = split(name) else { continue };
        let group = groups.entry(parts.stem).or_insert_with(|| Group {
            stem: parts.stem.to_owned(),
            num_experts: 0,
            numbered: parts.numbered,
            suffixes: BTreeMap::new(),
        });
        group.num_experts = group.num_experts.max(u64::from(parts.expert) + 1);
        if !group.suffixes.contains_key(parts.suffix) {
            group.suffixes.insert(parts.suffix.to_owned(), (dtype.cloned(), name.to_owned()));
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| group.layer().map_or(u64::MAX, u64::from));
    groups
}

/// Is this a second-level NVFP4 scale outside the routed experts, so its linear is NVFP4 as well?
pub fn is_other_nvfp4(name: &str) -> bool {
    !name.contains(".experts.") && (name.ends_with(".weight_scale_2") || name.ends_with(".weight_global_scale"))
}

struct Parts<'a> {
    stem: &'a str,
    expert: u32,
    numbered: bool,
    suffix: &'a str,
}

/// Take `STEM.experts.E.PROJECTION.SUFFIX` apart.
fn split(name: &str) -> Option<Parts<'_>> {
    let (stem, rest) = name.split_once(".experts.")?;
    let (expert, rest) = rest.split_once('.')?;
    let (projection, suffix) = rest.split_once('.')?;
    let numbered = match projection {
        "w1" | "w2" | "w3" => true,
        "gate_proj" | "up_proj" | "down_proj" => false,
        _ => return None,
    };
    Some(Parts { stem, expert: expert.parse().ok()?, numbered, suffix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> (Group, u32) {
        let parts = split(name).unwrap();
        let (stem, numbered) = (parts.stem.to_owned(), parts.numbered);
        (Group { stem, numbered, num_experts: 0, suffixes: BTreeMap::new() }, parts.expert)
    }

    #[test]
    fn both_namings_under_any_prefix_give_a_layer_and_the_name_back() {
        for (name, layer) in [
            ("layers.3.ffn.experts.17.w1.weight", Some(3)),
            ("model.layers.60.ffn.experts.17.w1.weight", Some(60)),
            ("model.layers.3.mlp.experts.17.gate_proj.weight", Some(3)),
            ("model.language_model.layers.3.mlp.experts.17.gate_proj.weight", Some(3)),
            ("model.layers.3.block_sparse_moe.experts.17.w1.weight", Some(3)),
            ("mtp.0.ffn.experts.17.w1.weight", None),
            ("mtp.layers.0.mlp.experts.17.gate_proj.weight", None),
            ("layers.x.mlp.experts.17.gate_proj.weight", None),
        ] {
            let (group, expert) = group(name);
            assert_eq!((group.layer(), expert), (layer, 17), "{name}");
            assert_eq!(group.tensor(17, Projection::Gate, "weight"), name);
        }
    }

    #[test]
    fn other_tensors_are_no_experts() {
        for name in [
            "layers.3.ffn.shared_experts.w1.weight",
            "layers.3.ffn.gate.weight",
            "layers.3.mlp.experts.gate_up_proj",
            "layers.3.mlp.experts.-1.w1.weight",
            "layers.3.mlp.experts.99999999999.w1.weight",
            "experts.0.w1.weight",
        ] {
            assert!(split(name).is_none(), "{name}");
        }
    }
}
