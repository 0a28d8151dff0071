// SPDX-License-Identifier: Apache-2.0
//! What `config.json` and `hf_quant_config.json` say about the experts.

use super::activation::{self, of_layer};
use super::sections::{Section, Sections};
use super::source::Directory;
use super::text::{as_printable_if_any, fault, printable};
use crate::activation::Activation;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};

const CONFIG: &str = "config.json";
const MODELOPT_CONFIG: &str = "hf_quant_config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 24;

// One fact under the names that models give it.
const NUM_EXPERTS: [&str; 8] = [
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "moe_num_experts",
    "num_routed_experts",
    "num_moe_experts",
    "n_experts",
    "n_moe_experts",
];
const TOP_K: [&str; 15] = [
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "topk_experts",
    "num_selected_experts",
    "experts_per_token",
    "experts_per_tok",
    "n_experts_per_tok",
    "n_activated_experts",
    "num_activated_experts",
    "moe_router_topk",
    "router_top_k",
];
const HIDDEN_SIZES: [&str; 4] = ["hidden_size", "moe_latent_size", "routed_expert_hidden_size", "expert_hidden_size"];
const INTERMEDIATE_SIZE: [&str; 3] = ["moe_intermediate_size", "expert_intermediate_size", "moe_ffn_hidden_size"];

/// The fields that matter to a MoE layer of the (language) model; `None` where the files do not say one thing for all.
#[derive(Debug, Serialize)]
pub struct Config {
    /// `model_type`, for example `deepseek_v4`.
    #[serde(serialize_with = "as_printable_if_any")]
    pub model_type: Option<String>,
    /// `hidden_size`
    pub hidden_size: Option<u64>,
    /// `moe_intermediate_size`
    pub moe_intermediate_size: Option<u64>,
    /// `n_routed_experts`, `num_experts`, `num_local_experts` or another of its names.
    pub num_experts: Option<u64>,
    /// `num_experts_per_tok`, or another of its names.
    pub top_k: Option<u64>,
    /// `swiglu_limit`
    pub swiglu_limit: Option<f32>,
    /// `routed_scaling_factor`
    pub routed_scaling_factor: Option<f32>,
    /// `quantization_config.quant_method`: modelopt, compressed-tensors or fp8.
    #[serde(serialize_with = "as_printable_if_any")]
    pub quant_method: Option<String>,
    /// `quant_algo` of `quantization_config` or of `hf_quant_config.json`, or compressed-tensors' `format`.
    #[serde(serialize_with = "as_printable_if_any")]
    pub quant_algo: Option<String>,
    /// `quantization_config.moe_quant_algo`: that of the experts alone.
    #[serde(serialize_with = "as_printable_if_any")]
    pub moe_quant_algo: Option<String>,
    /// `dtype` or `torch_dtype`: what an engine computes in.
    #[serde(serialize_with = "as_printable_if_any")]
    pub dtype: Option<String>,
    #[serde(skip)]
    sections: Sections,
    /// Why `hf_quant_config.json` was done without.
    #[serde(skip)]
    pub(super) unread: Option<String>,
}

/// A size out of the config.
#[derive(Debug, Clone)]
pub struct Said {
    /// Under which key.
    pub key: String,
    /// The size.
    pub size: u64,
    /// Is it the model's one number, and not an element of a list?
    pub is_certain: bool,
}

/// What the config says of one layer.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Sizes that rows into an expert may have.
    pub hidden_sizes: Vec<Said>,
    /// Of one of gate and up.
    pub intermediate_size: Option<Said>,
    /// E
    pub num_experts: Option<Said>,
    /// Experts that a token is sent to.
    pub top_k: Option<u64>,
    /// The engine folds it into the router's weights.
    pub routed_scaling_factor: Option<f32>,
    /// What the experts compute, or why this library does not.
    pub activation: std::result::Result<Activation, String>,
    /// What was read otherwise than it was written, and why.
    pub notes: Vec<String>,
}

impl Config {
    /// Read both files; `config.json` must be there.
    pub fn open(directory: &Directory) -> Result<Self> {
        let Some(config) = read_json(directory, CONFIG)? else {
            let rule = "it tells top_k, the activation and the sizes";
            return Err(Error::Io(format!("{CONFIG} is missing; {rule}. Copy it beside the weights.")));
        };
        let sections = Sections::new(config);
        // It only repeats what tensors and the other file tell.
        let (modelopt, unread) = match read_json(directory, MODELOPT_CONFIG) {
            Ok(modelopt) => (modelopt.unwrap_or_default(), None),
            Err(error @ Error::OutOfMemory { .. }) => return Err(error),
            Err(error) => (Map::new(), Some(error.to_string())),
        };
        let quantization = |key: &str| string(sections.any("quantization_config")?.get(key)?);
        let by_modelopt = |key: &str| string(modelopt.get("quantization")?.get(key)?);
        let algo =
            || quantization("quant_algo").or_else(|| quantization("format")).or_else(|| by_modelopt("quant_algo"));
        let (quant_method, quant_algo) = (quantization("quant_method"), algo());
        let moe_quant_algo = quantization("moe_quant_algo").or_else(|| by_modelopt("moe_quant_algo"));
        let mut facts = Facts::new(&sections.chain("", &keys_of_experts()), None, true);
        let of_all = |said: Option<Said>| said.filter(|said| said.is_certain).map(|said| said.size);
        let dtype = sections.any("dtype").or_else(|| sections.any("torch_dtype")).and_then(string);
        let model_type = sections.any("model_type").and_then(string);
        let swiglu_limit = sections.any("swiglu_limit").and_then(Value::as_f64).map(|limit| limit as f32);
        Ok(Config {
            model_type,
            hidden_size: of_all(facts.hidden_sizes.first().cloned()),
            moe_intermediate_size: of_all(facts.intermediate_size.take()),
            num_experts: of_all(facts.num_experts.take()),
            top_k: facts.top_k,
            swiglu_limit: swiglu_limit.filter(|limit| *limit > 0.0),
            routed_scaling_factor: facts.routed_scaling_factor,
            quant_method,
            quant_algo,
            moe_quant_algo,
            dtype,
            sections,
            unread,
        })
    }

    /// What it says of one layer, whose experts have a gate or not; `stem` tells which tower's it is.
    pub fn facts(&self, stem: &str, layer: u32, gated: bool) -> Facts {
        Facts::new(&self.sections.chain(stem, &keys_of_experts()), Some(layer), gated)
    }

    /// DeepSeek-V4's own: FP8 everywhere but in the routed experts.
    pub fn is_fp8_with_nvfp4_experts(&self) -> bool {
        self.quant_method.as_deref() == Some("fp8") && self.moe_quant_algo.as_deref() == Some("NVFP4")
    }

    /// Does it name MXFP4? Scales that are mere bytes are taken for e8m0 only then.
    pub fn says_mxfp4(&self) -> bool {
        let said = [&self.quant_method, &self.quant_algo, &self.moe_quant_algo];
        said.into_iter().flatten().any(|text| text.to_ascii_lowercase().contains("mxfp4"))
    }

    /// The model's type, or a tower's, if it starts with one of `starts`.
    pub fn model_type_of(&self, starts: &[&str]) -> Option<String> {
        let chain = self.sections.chain("", &keys_of_experts());
        let mut types = chain.iter().filter_map(|section| section.values.get("model_type")?.as_str());
        let fits = |model: &&str| starts.iter().any(|start| model.replace('-', "_").starts_with(start));
        types.find(fits).map(printable)
    }
}

fn keys_of_experts() -> Vec<&'static str> {
    [&NUM_EXPERTS[..], &TOP_K, &INTERMEDIATE_SIZE].concat()
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn read_json(directory: &Directory, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(source) = directory.open(name)? else { return Ok(None) };
    let bytes = source.read_all(name, MAX_CONFIG_BYTES)?;
    let malformed = |found: String| fault(name, found, "it must be a JSON object", "Download it again.");
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(other) => Err(malformed(other.to_string())),
        Err(error) => Err(malformed(format!("malformed ({error})"))),
    }
}

impl Facts {
    fn new(chain: &[&Section], layer: Option<u32>, gated: bool) -> Self {
        let mut notes = Vec::new();
        let mut size = |keys: &[&str]| find_size(chain, keys, layer, &mut notes);
        let hidden_sizes = HIDDEN_SIZES.iter().filter_map(|key| size(&[key])).collect();
        let intermediate_size = size(&INTERMEDIATE_SIZE);
        let num_experts = size(&NUM_EXPERTS);
        let top_k = size(&TOP_K).map(|said| said.size);
        let factor = chain.iter().find_map(|section| section.values.get("routed_scaling_factor")?.as_f64());
        Facts {
            hidden_sizes,
            intermediate_size,
            num_experts,
            top_k,
            routed_scaling_factor: factor.map(|f| f as f32).filter(|f| f.is_finite() && *f > 0.0),
            activation: activation::activation(chain, layer, gated),
            notes,
        }
    }
}

/// The first of `keys` that is there, the most special section first; what is no size is noted, and done without.
fn find_size(chain: &[&Section], keys: &[&str], layer: Option<u32>, notes: &mut Vec<String>) -> Option<Said> {
    let (key, value) = chain.iter().find_map(|section| {
        keys.iter().find_map(|key| section.values.get_key_value(*key).filter(|(_, value)| !value.is_null()))
    })?;
    let (element, is_certain) = match value.as_array() {
        // A list that says the same for all is as good as a number.
        Some(list) if list.iter().all(|element| *element == list[0]) => (list.first(), true),
        Some(_) => (of_layer(value, layer), false),
        None => (Some(value), true),
    };
    let whole = |value: &Value| {
        value.as_u64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f > 0.0).map(|f| f as u64))
    };
    let size = element.and_then(whole).filter(|size| (1..=i32::MAX as u64).contains(size));
    if size.is_none() && layer.is_some() {
        let rule = "it must be an integer from 1 to 2147483647, or a list of them with one for each layer";
        notes.push(format!(
            "{key} in {CONFIG} is {}; {rule}. It is done without: the weights tell all sizes but top_k.",
            printable(value)
        ));
    }
    size.map(|size| Said { key: key.clone(), size, is_certain })
}
