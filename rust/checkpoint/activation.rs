// SPDX-License-Identifier: Apache-2.0
//! What the config says of the experts' activation, and whether this library computes it.
//!
//! Its name is translated to one of [`ActivationKind`]. Whatever else a config asks for, or might, is refused by the name of
//! its key: another activation gives other numbers, not an error.

use super::sections::Section;
use super::text::printable;
use crate::activation::{Activation, ActivationKind};
use serde_json::Value;

/// As names mean it, with the numbers that a model's code has as constants: kind, limit, alpha, beta.
type Named = (ActivationKind, f32, f32, f32);

const SILU: Named = (ActivationKind::Swiglu, 0.0, 1.0, 0.0);
/// gpt-oss's, which its engines have as constants; MiniMax-M3's config leaves beta out.
const SWIGLU_OAI: Named = (ActivationKind::Swiglu, 7.0, 1.702, 1.0);
const GELU_TANH: Named = (ActivationKind::GeluTanh, 0.0, 1.0, 0.0);
const GELU: Named = (ActivationKind::Gelu, 0.0, 1.0, 0.0);

/// Names of activations of experts with a gate.
const NAMES: [(&str, Named); 13] = [
    ("silu", SILU),
    ("swish", SILU),
    ("swiglu", SILU),
    ("swigluoai", SWIGLU_OAI),
    ("swiglu_oai", SWIGLU_OAI),
    ("swiglustep", (ActivationKind::SwigluStep, 0.0, 1.0, 0.0)),
    ("situ", (ActivationKind::Situ, 0.0, 1.0, 0.0)),
    ("gelu_pytorch_tanh", GELU_TANH),
    ("gelu_tanh", GELU_TANH),
    ("gelu_new", GELU_TANH),
    ("gelu_fast", GELU_TANH),
    ("gelu", GELU), // transformers' name of the one with erf
    ("gelu_python", GELU),
];

/// Those of experts without.
const NAMES_WITHOUT_GATE: [(&str, Named); 3] = [
    ("relu2", (ActivationKind::Relu2, 0.0, 1.0, 0.0)),
    ("silu", (ActivationKind::Silu, 0.0, 1.0, 0.0)),
    ("swish", (ActivationKind::Silu, 0.0, 1.0, 0.0)),
];

/// What a model's own code knows and its config does not say, by the start of `model_type`.
const MODELS: [(&str, Rule); 8] = [
    ("gpt_oss", Rule::Means("swigluoai")), // its config says silu
    ("minimax_m3", Rule::Means("swigluoai")),
    ("kimi_k3", Rule::Means("situ")),
    ("gemma", Rule::Default("gelu_pytorch_tanh")),
    ("nemotron_h", Rule::HasNoGate("relu2")),
    ("grok", Rule::Unclear("whose code is not at one on GELU, by tanh or by erf")), // xAI's JAX, ports of it
    ("dbrx", Rule::Default("silu")),
    ("step", Rule::ClampsAfter),
];

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Whatever the config says, unless that is something else than SiLU.
    Means(&'static str),
    /// Whatever the config says, engines differ.
    Unclear(&'static str),
    /// Where the config says nothing.
    Default(&'static str),
    /// The same, and experts without a gate are whole.
    HasNoGate(&'static str),
    /// A limit bounds what SiLU gave, not what it is given.
    ClampsAfter,
}

const REMEDY: &str = "Run the layer with the model's own kernels; or pass activation, swiglu_limit, swiglu_alpha and \
                      swiglu_beta if you know them.";

/// What this library computes, in words.
fn have(gated: bool) -> &'static str {
    match gated {
        true => "this library computes silu, swigluoai, swiglustep, situ, gelu and gelu_pytorch_tanh",
        false => "without a gate this library computes relu2, and silu in models that have no gate",
    }
}

fn refusal(key: &str, value: &Value, gated: bool) -> String {
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("{} in config.json is {}; {}. {REMEDY}", printable(key), printable(value), have(gated))
}

/// What a layer's experts compute, or the sentence that says why this library does not.
pub fn activation(chain: &[&Section], layer: Option<u32>, gated: bool) -> Result<Activation, String> {
    let model = model_rule(chain);
    let (mut kind, mut limit, mut alpha, mut beta) = named(chain, layer, &model, gated)?;
    for section in chain {
        for (key, value) in &section.values {
            let is_known =
                KNOWN.contains(&key.as_str()) || kind == ActivationKind::Situ && SITU.contains(&key.as_str());
            if is_parameter(key) && says_something(value) && !is_known {
                return Err(refusal(key, value, gated));
            }
        }
    }
    let given = |key: &str| number(chain, layer, key);
    let (given_limit, given_alpha, given_beta) =
        (given("swiglu_limit")?, given("swiglu_alpha")?, given("swiglu_beta")?);
    let clamps_after = kind == ActivationKind::SwigluStep || matches!(model, Some((_, Rule::ClampsAfter)));
    let of_layer_list = match clamps_after {
        true => given("swiglu_limits")?,
        false => refuse_limits(chain, layer, gated)?,
    };
    if given_alpha.is_some_and(|given| given != alpha) && given_beta.is_none() && beta == 0.0 {
        let value = given_alpha.unwrap_or_default();
        return Err(format!(
            "swiglu_alpha in config.json is {value}; swiglu_beta is missing, and models differ in it. Pass both."
        ));
    }
    limit = of_layer_list.or(given_limit).unwrap_or(limit);
    alpha = given_alpha.filter(|alpha| *alpha > 0.0).unwrap_or(alpha);
    beta = given_beta.unwrap_or(beta);
    if kind == ActivationKind::Swiglu && clamps_after && limit > 0.0 {
        kind = ActivationKind::SwigluStep;
    }
    if kind == ActivationKind::Situ {
        // Null is 1, and no bound of up, as the model's code has it; left out, it was forgotten.
        for key in SITU {
            if !chain.iter().any(|section| section.values.contains_key(key)) {
                return Err(format!("{key} is missing in config.json; SiTU needs it. {REMEDY}"));
            }
        }
        (beta, limit) = (given(SITU[0])?.unwrap_or(0.0), given(SITU[1])?.unwrap_or(0.0));
    }
    Activation::new(kind, limit, alpha, beta).map_err(|error| format!("config.json: {error} {REMEDY}"))
}

/// A parameter, of the layer where there is a list.
fn number(chain: &[&Section], layer: Option<u32>, key: &str) -> Result<Option<f32>, String> {
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
}

/// A list of limits says not whether they clamp before or after.
fn refuse_limits(chain: &[&Section], layer: Option<u32>, gated: bool) -> Result<Option<f32>, String> {
    let Some(limits) = value_of(chain, "swiglu_limits") else { return Ok(None) };
    let of_layer = of_layer(limits, layer).unwrap_or(limits);
    if says_something(of_layer) { Err(refusal("swiglu_limits", of_layer, gated)) } else { Ok(None) }
}

fn value_of<'a>(chain: &[&'a Section], key: &str) -> Option<&'a Value> {
    chain.iter().find_map(|section| section.values.get(key).filter(|value| !value.is_null()))
}

/// By the config's name for it, and what the model's type makes of that.
fn named(chain: &[&Section], layer: Option<u32>, model: &Option<(String, Rule)>, gated: bool) -> Result<Named, String> {
    let names: &[(&str, Named)] = if gated { &NAMES } else { &NAMES_WITHOUT_GATE };
    let known = |name: &str| names.iter().find(|(known, _)| *known == name).map(|(_, named)| *named);
    let mut said: Option<(String, Named)> = None;
    for (key, value) in names_given(chain) {
        let value = of_layer(value, layer).unwrap_or(value);
        let name = value.as_str().or_else(|| value["name"].as_str()).unwrap_or_default().to_ascii_lowercase();
        let named = known(&name).ok_or_else(|| refusal(key, value, gated))?;
        match &said {
            Some((other, found)) if *found != named => {
                let (key, other) = (printable(key), printable(other));
                return Err(format!("{key} in config.json is {name}; {other} says otherwise. {REMEDY}"));
            }
            _ => said = Some((key.to_owned(), named)),
        }
    }
    let of_model = match (said, model) {
        (_, Some((model, Rule::Unclear(why)))) => {
            return Err(format!("model_type in config.json is {model}, {why}; {}. {REMEDY}", have(gated)));
        }
        (Some((key, named)), Some((model, Rule::Means(name)))) if named != SILU && known(name) != Some(named) => {
            return Err(format!("{key} in config.json is no {name}; model_type {model} says otherwise. {REMEDY}"));
        }
        (None, Some((model, Rule::Default(name) | Rule::HasNoGate(name)))) | (_, Some((model, Rule::Means(name)))) => {
            let in_words = || format!("model_type in config.json is {model}, whose experts use {name}");
            known(name).ok_or_else(|| format!("{}; {}. {REMEDY}", in_words(), have(gated)))?
        }
        (Some((_, named)), _) => named,
        (None, _) => SILU,
    };
    // Where SiLU has a gate elsewhere, experts without one may be what a download left of them.
    let has_no_gate = matches!(model, Some((_, Rule::HasNoGate(_))));
    if !gated && of_model.0 != ActivationKind::Relu2 && !has_no_gate {
        return Err(format!("the experts have no gate, and config.json does not say relu2; {}. {REMEDY}", have(gated)));
    }
    Ok(of_model)
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

/// SiTU's bounds, of gate and of up.
const SITU: [&str; 2] = ["activation_situ_beta", "activation_situ_linear_beta"];

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
