// SPDX-License-Identifier: Apache-2.0
//! Where a model keeps its facts in `config.json`: at the top, or in an object for each tower.

use serde_json::{Map, Value};

/// Objects deeper than this, or more than so many, are not looked into.
const MAX_DEPTH: usize = 4;
const MAX_SECTIONS: usize = 64;

/// Parts of a model that never hold its experts.
const OTHER_TOWERS: [&str; 9] =
    ["vision", "visual", "audio", "speech", "image", "video", "code", "draft", "quantization"];

/// What language models are called among the towers.
const LANGUAGE: [&str; 5] = ["text", "llm", "language", "thinker", "decoder"];

/// One object of the config, with the keys that lead to it (`thinker_config`, `text_config`); none for the whole.
#[derive(Debug)]
pub struct Section {
    path: Vec<String>,
    /// The object.
    pub values: Map<String, Value>,
}

/// The config as a list of objects, outer ones first.
#[derive(Debug)]
pub struct Sections(Vec<Section>);

impl Sections {
    /// Of the whole config.
    pub fn new(config: Map<String, Value>) -> Self {
        let mut sections = vec![Section { path: Vec::new(), values: config }];
        let mut at = 0;
        while let Some(section) = sections.get(at) {
            let path = section.path.clone();
            let objects = section.values.iter().filter_map(|(key, value)| {
                let values = value.as_object().filter(|_| key.ends_with("config") && !key.contains("quantization"))?;
                Some(Section { path: [&path[..], std::slice::from_ref(key)].concat(), values: values.clone() })
            });
            let inner: Vec<_> = objects.take(if path.len() < MAX_DEPTH { MAX_SECTIONS } else { 0 }).collect();
            sections.extend(inner);
            sections.truncate(MAX_SECTIONS);
            at += 1;
        }
        Sections(sections)
    }

    /// The objects that tell of the tensors under `stem`, the most special first, the whole config last.
    ///
    /// A tower's object is known by a name that occurs in the stem (`thinker_config` for `thinker.model.layers.0`); among
    /// several, or where no name does, the one that has any of `keys`, and is called as language models are.
    pub fn chain(&self, stem: &str, keys: &[&str]) -> Vec<&Section> {
        let score = |section: &Section| {
            let named = section.path.iter().filter(|key| is_in_stem(key, stem)).count();
            let has_keys = keys.iter().any(|key| !section.values.get(*key).unwrap_or(&Value::Null).is_null());
            let language = section.path.iter().filter(|key| LANGUAGE.iter().any(|name| key.starts_with(name))).count();
            let other = section.path.iter().any(|key| OTHER_TOWERS.iter().any(|name| key.starts_with(name)));
            (!other || named > 0, has_keys, named, language)
        };
        let mut best = &self.0[0];
        for section in &self.0[1..] {
            if score(section) > score(best) {
                best = section;
            }
        }
        let mut chain: Vec<_> = self.0.iter().filter(|section| best.path.starts_with(&section.path)).collect();
        chain.reverse();
        chain
    }

    /// The first value of `key` in any section.
    pub fn any(&self, key: &str) -> Option<&Value> {
        self.0.iter().filter_map(|section| section.values.get(key)).find(|value| !value.is_null())
    }
}

/// Does the tower of that key occur in a tensor's name?
fn is_in_stem(key: &str, stem: &str) -> bool {
    let tower = key.trim_end_matches("config").trim_end_matches('_');
    let is_tower = |part: &str| part == tower || part.strip_prefix(tower).is_some_and(|rest| rest.starts_with('_'));
    !tower.is_empty() && stem.split('.').any(is_tower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_size(config: Value, stem: &str) -> Value {
        let sections = Sections::new(config.as_object().unwrap().clone());
        let chain = sections.chain(stem, &["num_experts"]);
        chain.iter().find_map(|section| section.values.get("hidden_size")).cloned().unwrap_or_default()
    }

    #[test]
    fn a_tower_is_known_by_its_name() {
        let tower = |size: u64| serde_json::json!({"text_config": {"hidden_size": size, "num_experts": 4}});
        let config = serde_json::json!({"thinker_config": tower(1), "talker_config": tower(2), "hidden_size": 3});
        assert_eq!(first_size(config.clone(), "thinker.model.layers.0.mlp"), 1);
        assert_eq!(first_size(config.clone(), "talker.model.layers.0.mlp"), 2);
        assert_eq!(first_size(config, "model.layers.0.mlp"), 1, "the language model's");
    }

    #[test]
    fn wherever_a_model_keeps_its_experts() {
        for key in ["text_config", "llm_config", "language_config", "some_config"] {
            let config =
                serde_json::json!({key: {"hidden_size": 1, "num_experts": 4}, "vision_config": {"hidden_size": 2}});
            assert_eq!(first_size(config, "model.layers.0.mlp"), 1, "{key}");
        }
        let flat = serde_json::json!({"hidden_size": 1, "num_experts": 4, "text_config": null, "audio_config": {"num_experts": 2, "hidden_size": 3}});
        assert_eq!(first_size(flat, "model.layers.0.mlp"), 1);
    }
}
