//! What `config.json` and `hf_quant_config.json` say about the experts.

use super::source::Directory;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;

const CONFIG: &str = "config.json";
const MODELOPT_CONFIG: &str = "hf_quant_config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 24;

/// The fields that matter to a MoE layer; `None` where the files do not say.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Config {
    /// `model_type`, for example `deepseek_v4`.
    pub model_type: Option<String>,
    /// `hidden_size`
    pub hidden_size: Option<u64>,
    /// `moe_intermediate_size`
    pub moe_intermediate_size: Option<u64>,
    /// `n_routed_experts`, `num_experts` or `num_local_experts`
    pub num_experts: Option<u64>,
    /// `num_experts_per_tok`
    pub top_k: Option<u64>,
    /// `swiglu_limit`
    pub swiglu_limit: Option<f32>,
    /// `routed_scaling_factor`
    pub routed_scaling_factor: Option<f32>,
    /// `quantization_config.quant_method`: modelopt, compressed-tensors or fp8.
    pub quant_method: Option<String>,
    /// `quant_algo` of `quantization_config` or of `hf_quant_config.json`, or compressed-tensors' `format`.
    pub quant_algo: Option<String>,
    /// `quantization_config.moe_quant_algo`: that of the experts alone.
    pub moe_quant_algo: Option<String>,
}

impl Config {
    /// Read both files; `config.json` must be there.
    pub fn open(directory: &Directory) -> Result<Self> {
        let Some(config) = read_json(directory, CONFIG)? else {
            let rule = "it tells top_k, the clamp and the sizes";
            return Err(Error::Io(format!("{CONFIG} is missing; {rule}. Copy it beside the weights.")));
        };
        let text = &config["text_config"]; // where multi-modal models keep the language model's part
        let model = Section { file: CONFIG, values: [&config, text] };
        let quantization =
            Section { file: CONFIG, values: [&config["quantization_config"], &text["quantization_config"]] };
        let modelopt = read_json(directory, MODELOPT_CONFIG)?.unwrap_or_default();
        let modelopt = Section { file: MODELOPT_CONFIG, values: [&modelopt["quantization"], &Value::Null] };
        let quant_algo = match quantization.string(&["quant_algo", "format"])? {
            Some(algo) => Some(algo),
            None => modelopt.string(&["quant_algo"])?,
        };
        Ok(Config {
            model_type: model.string(&["model_type"])?,
            hidden_size: model.size(&["hidden_size"])?,
            moe_intermediate_size: model.size(&["moe_intermediate_size"])?,
            num_experts: model.size(&["n_routed_experts", "num_experts", "num_local_experts"])?,
            top_k: model.size(&["num_experts_per_tok", "num_experts_per_token", "moe_top_k"])?,
            swiglu_limit: model.float(&["swiglu_limit"])?,
            routed_scaling_factor: model.float(&["routed_scaling_factor"])?,
            quant_method: quantization.string(&["quant_method"])?,
            quant_algo,
            moe_quant_algo: quantization.string(&["moe_quant_algo"])?,
        })
    }

    /// DeepSeek-V4's own: FP8 everywhere but in the routed experts.
    pub fn is_fp8_with_nvfp4_experts(&self) -> bool {
        self.quant_method.as_deref() == Some("fp8") && self.moe_quant_algo.as_deref() == Some("NVFP4")
    }
}

fn read_json(directory: &Directory, name: &str) -> Result<Option<Value>> {
    let Some(source) = directory.open(name)? else { return Ok(None) };
    let bytes = source.read_all(name, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::checkpoint(name, format_args!("malformed ({e})"), "it must be a JSON object", "Download it again.")
    })
}

/// Objects of one file that are searched in turn.
struct Section<'a> {
    file: &'static str,
    values: [&'a Value; 2],
}

impl Section<'_> {
    /// The first of `keys` that is there and not null, as `convert` reads it; an error if it does not.
    fn get<T>(&self, keys: &[&str], rule: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        for key in keys {
            let Some(value) = self.values.iter().map(|v| &v[*key]).find(|v| !v.is_null()) else { continue };
            let name = format!("{key} in {}", self.file);
            let error = || Error::checkpoint(name, value, format_args!("it must be {rule}"), "Correct the file.");
            return convert(value).map(Some).ok_or_else(error);
        }
        Ok(None)
    }

    fn string(&self, keys: &[&str]) -> Result<Option<String>> {
        self.get(keys, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn size(&self, keys: &[&str]) -> Result<Option<u64>> {
        let convert = |value: &Value| value.as_u64().filter(|size| (1..=i32::MAX as u64).contains(size));
        self.get(keys, "an integer from 1 to 2147483647", convert)
    }

    /// A finite, positive number; 0 counts as not said.
    fn float(&self, keys: &[&str]) -> Result<Option<f32>> {
        let convert = |value: &Value| value.as_f64().map(|v| v as f32).filter(|v| v.is_finite() && *v >= 0.0);
        Ok(self.get(keys, "a finite number, not negative", convert)?.filter(|value| *value > 0.0))
    }
}
