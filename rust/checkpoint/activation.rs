// SPDX-License-Identifier: Apache-2.0
//! What the config says of the experts' activation, and whether this library computes it.
//!
//! The kernels have one: `gate * sigmoid(alpha * gate) * (up + beta)`, with gate and up clamped before. SiLU is alpha 1,
//! beta 0. Whatever else a config asks for, or might, is refused by the name of its key: another activation gives other
//! numbers, not an error.

use super::sections::Section;
use super::text::printable;
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// `gate = min(gate, limit); up = clamp(up, -limit, limit); gate * sigmoid(alpha * gate) * (up + beta)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Activation {
    /// 0 is none.
    pub limit: f32,
    /// 1 is SiLU.
    pub alpha: f32,
    /// Added to up.
    pub beta: f32,
}

const SILU: Activation = Activation { limit: 0.0, alpha: 1.0, beta: 0.0 };

/// gpt-oss's, which its engines have as constants; MiniMax-M3's config leaves beta out.
const SWIGLU_OAI: Activation = Activation { limit: 7.0, alpha: 1.702, beta: 1.0 };

/// Names that mean [`SILU`] and [`SWIGLU_OAI`].
const NAMES: [(&str, Activation); 5] =
    [("silu", SILU), ("swish", SILU), ("swiglu", SILU), ("swigluoai", SWIGLU_OAI), ("swiglu_oai", SWIGLU_OAI)];

/// What a model's own code knows and its config does not say, by the start of `model_type`.
const MODELS: [(&str, Rule); 8] = [
    ("gpt_oss", Rule::Means("swigluoai")), // its config says silu
    ("minimax_m3", Rule::Means("swigluoai")),
    ("kimi_k3", Rule::Means("situ")),
    ("gemma", Rule::Default("gelu_pytorch_tanh")),
    ("nemotron_h", Rule::Default("relu2")),
    ("grok", Rule::Default("gelu")),
    ("dbrx", Rule::Default("silu")),
    ("step", Rule::ClampsAfter),
];

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Whatever the config says, unless that is something else than SiLU.
    Means(&'static str),
    /// Where the config says nothing.
    Default(&'static str),
    /// A limit bounds what SiLU gave, not what it is given.
    ClampsAfter,
}

const HAVE: &str = "this library computes SwiGLU alone: silu or swigluoai, clamped before";
const REMEDY: &str = "Run the layer with the model's own kernels; or pass swiglu_limit, swiglu_alpha and swiglu_beta if you \
                      know them.";

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation { alpha: 1.0, beta: 0.0, .. } => f.write_str("silu")?,
            Activation { alpha, beta, .. } => write!(f, "swiglu alpha {alpha} beta {beta}")?,
        }
        if self.limit > 0.0 { write!(f, ", clamp {}", self.limit) } else { Ok(()) }
    }
}

fn refusal(key: &str, value: &Value) -> String {
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("{} in config.json is {}; {HAVE}. {REMEDY}", printable(key), printable(value))
}

/// What a layer's experts compute, or the sentence that says why this library does not.
pub fn activation(chain: &[&Section], layer: Option<u32>) -> Result<Activation, String> {
    let model = model_rule(chain);
    let mut found = named(chain, layer, &model)?;
    for section in chain {
        for (key, value) in &section.values {
            if is_parameter(key) && says_something(value) && !KNOWN.contains(&key.as_str()) {
                return Err(refusal(key, value));
            }
        }
    }
    let number = |key: &str| -> Result<Option<f32>, String> {
        let Some(value) = value_of(chain, key) else { return Ok(None) };
        let number = of_layer(value, layer).and_then(|value| if value.is_null() { Some(0.0) } else { value.as_f64() });
        let usable = number.map(|number| number as f32).filter(|number| number.is_finite() && *number >= 0.0);
        let error = || {
            let rule = "it must be a finite number, not negative, or a list of them with one for each layer";
            format!(
                "{key} in config.json is {}; {rule}. Correct the file, or pass swiglu_limit, swiglu_alpha and swiglu_beta.",
                printable(value)
            )
        };
        usable.map(Some).ok_or_else(error)
    };
    let (limit, alpha, beta) = (number("swiglu_limit")?, number("swiglu_alpha")?, number("swiglu_beta")?);
    if let (Some((model, Rule::ClampsAfter)), Some(limit)) = (&model, limit.filter(|limit| *limit > 0.0)) {
        return Err(format!(
            "swiglu_limit in config.json is {limit}; {model} clamps after the SiLU, and {HAVE}. {REMEDY}"
        ));
    }
    if let Some(limits) = value_of(chain, "swiglu_limits") {
        let of_layer = of_layer(limits, layer).unwrap_or(limits);
        if says_something(of_layer) {
            return Err(refusal("swiglu_limits", of_layer));
        }
    }
    if alpha.is_some_and(|alpha| alpha != found.alpha) && beta.is_none() && found.beta == 0.0 {
        let value = alpha.unwrap_or_default();
        return Err(format!(
            "swiglu_alpha in config.json is {value}; swiglu_beta is missing, and models differ in it. Pass both."
        ));
    }
    found.limit = limit.unwrap_or(found.limit);
    found.alpha = alpha.filter(|alpha| *alpha > 0.0).unwrap_or(found.alpha);
    found.beta = beta.unwrap_or(found.beta);
    Ok(found)
}

fn value_of<'a>(chain: &[&'a Section], key: &str) -> Option<&'a Value> {
    chain.iter().find_map(|section| section.values.get(key).filter(|value| !value.is_null()))
}

/// By the config's name for it, and what the model's type makes of that.
fn named(chain: &[&Section], layer: Option<u32>, model: &Option<(String, Rule)>) -> Result<Activation, String> {
    let mut said: Option<(String, Activation)> = None;
    for (key, value) in names_given(chain) {
        let value = of_layer(value, layer).unwrap_or(value);
        let name = value.as_str().or_else(|| value["name"].as_str()).unwrap_or_default().to_ascii_lowercase();
        let known = NAMES.iter().find(|(known, _)| *known == name).ok_or_else(|| refusal(key, value))?.1;
        match &said {
            Some((other, found)) if *found != known => {
                let (key, other) = (printable(key), printable(other));
                return Err(format!("{key} in config.json is {name}; {other} says otherwise, and {HAVE}. {REMEDY}"));
            }
            _ => said = Some((key.to_owned(), known)),
        }
    }
    match (said, model) {
        (None, Some((model, Rule::Default(name)))) | (_, Some((model, Rule::Means(name)))) => {
            let known = NAMES.iter().find(|(known, _)| known == name).map(|(_, activation)| *activation);
            known.ok_or_else(|| {
                format!("model_type in config.json is {model}, whose experts use {name}; {HAVE}. {REMEDY}")
            })
        }
        (said, _) => Ok(said.map_or(SILU, |(_, found)| found)),
    }
}

/// What the config calls the activation, in its own words: `mlp_hidden_act in config.json is relu2`.
pub fn in_words(chain: &[&Section]) -> Option<String> {
    let (key, value) = names_given(chain).into_iter().next()?;
    Some(format!("{} in config.json is {}", printable(key), printable(value.as_str().unwrap_or("not a name"))))
}

/// Every key that names the experts' activation, of the most special section that has one.
fn names_given<'a>(chain: &[&'a Section]) -> Vec<(&'a str, &'a Value)> {
    let given = |section: &&'a Section| {
        let names = section
            .values
            .iter()
            .filter(|(key, value)| is_name(key) && !value.is_null() && !(value.is_boolean() && key.starts_with("use")));
        let names: Vec<_> = names.map(|(key, value)| (key.as_str(), value)).collect();
        (!names.is_empty()).then_some(names)
    };
    chain.iter().find_map(given).unwrap_or_default()
}

fn model_rule(chain: &[&Section]) -> Option<(String, Rule)> {
    let types = chain.iter().filter_map(|section| section.values.get("model_type")?.as_str());
    let rule = |model: &str| {
        let plain = model.to_ascii_lowercase().replace('-', "_");
        MODELS.iter().find(|(start, _)| plain.starts_with(start)).map(|(_, rule)| (printable(model), *rule))
    };
    types.filter_map(rule).next()
}

/// A layer's element of a list, where there is one for each layer; any other value as it is.
pub fn of_layer(value: &Value, layer: Option<u32>) -> Option<&Value> {
    match value.as_array() {
        Some(list) => list.get(layer? as usize),
        None => Some(value),
    }
}

/// Parameters of the activation that are read.
const KNOWN: [&str; 4] = ["swiglu_limit", "swiglu_limits", "swiglu_alpha", "swiglu_beta"];

/// Words of keys that tell of other parts of a model than its routed experts.
const OTHER_PARTS: [&str; 21] = [
    "vision",
    "visual",
    "audio",
    "speech",
    "image",
    "mamba",
    "ssm",
    "conv",
    "router",
    "gating",
    "scoring",
    "score",
    "projector",
    "shared",
    "attn",
    "attention",
    "pooler",
    "classifier",
    "embedding",
    "dropout",
    "checkpointing",
];

fn words(key: &str) -> Vec<String> {
    key.to_ascii_lowercase().split(['_', '-', '.']).map(str::to_owned).collect()
}

fn is_of_other_part(words: &[String]) -> bool {
    words.iter().any(|word| OTHER_PARTS.contains(&word.as_str()))
}

/// `hidden_act`, `hidden_activation`, `mlp_hidden_act`, `ffn_act_fn`, `activation_function`, ...
fn is_name(key: &str) -> bool {
    let words = words(key);
    let act = |word: &String| word == "act" || word == "activation";
    let end = words.last().is_some_and(|last| act(last) || ["fn", "func", "function", "type"].contains(&last.as_str()));
    end && words.iter().any(act) && !is_of_other_part(&words)
}

/// Could that key change what the experts compute? `situ_beta`, `activation_limit`, `expert_clamp`, ...
fn is_parameter(key: &str) -> bool {
    let words = words(key);
    let has = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let of_glu = has(&["swiglu", "situ", "geglu", "reglu", "glu", "swiglustep", "swish", "gelu", "clamp", "clamping"]);
    let of_act = has(&["act", "activation"])
        && has(&[
            "alpha",
            "beta",
            "limit",
            "limits",
            "cap",
            "threshold",
            "sparsity",
            "slope",
            "clip",
            "params",
            "kwargs",
        ]);
    let of_half = has(&["gate", "up"]) && has(&["limit", "limits"]);
    (of_glu || of_act || of_half) && !is_name(key) && !is_of_other_part(&words)
}

/// Null, false, 0 and lists of them switch nothing on; `use_swiglu: true` says what is so anyway.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => list.iter().any(says_something),
        Value::Object(map) => map.values().any(says_something),
    }
}
