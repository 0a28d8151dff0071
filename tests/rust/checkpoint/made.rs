// SPDX-License-Identifier: Apache-2.0
//! Small checkpoints, made in memory with known bytes; tests break them before they are read.

use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// What to make. `made()` turns it into tensors.
#[derive(Clone)]
pub struct Spec {
    /// `layers.N.ffn.experts.E.w1` (and not `model.layers.N.mlp.experts.E.gate_proj`)?
    pub deepseek_names: bool,
    /// compressed-tensors (and not ModelOpt)?
    pub compressed_tensors: bool,
    pub layers: usize,
    pub experts: usize,
    pub hidden: usize,
    pub intermediate: usize,
    /// Block scales that are powers of two, equal in pairs.
    pub lossless_cast: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            deepseek_names: true,
            compressed_tensors: false,
            layers: 1,
            experts: 3,
            hidden: 64,
            intermediate: 32,
            lossless_cast: false,
        }
    }
}

pub const GATE: usize = 0;
pub const UP: usize = 1;
pub const DOWN: usize = 2;

#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn scalar(value: f32) -> Self {
        Tensor { dtype: Dtype::F32, shape: vec![], data: value.to_le_bytes().to_vec() }
    }
}

/// Tensors by name, and the config.
#[derive(Clone)]
pub struct Made {
    pub spec: Spec,
    pub tensors: BTreeMap<String, Tensor>,
    pub config: serde_json::Value,
}

/// Bytes that differ from tensor to tensor and look random, but are the same in every run.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

impl Spec {
    pub fn name(&self, layer: usize, expert: usize, projection: usize, tensor: &str) -> String {
        let (stem, projections) = match self.deepseek_names {
            true => (format!("layers.{layer}.ffn"), ["w1", "w3", "w2"]),
            false => (format!("model.layers.{layer}.mlp"), ["gate_proj", "up_proj", "down_proj"]),
        };
        let tensor = match (self.compressed_tensors, tensor) {
            (true, "weight") => "weight_packed",
            (true, "weight_scale_2") => "weight_global_scale",
            (true, "input_scale") => "input_global_scale",
            _ => tensor,
        };
        format!("{stem}.experts.{expert}.{}.{tensor}", projections[projection])
    }

    /// The stored form of a scale that decodes.
    pub fn stored(&self, scale: f32) -> f32 {
        if self.compressed_tensors { 1.0 / scale } else { scale }
    }

    pub fn made(&self) -> Made {
        let mut tensors = BTreeMap::new();
        for (layer, expert, projection) in self.matrices() {
            let (rows, cols) =
                if projection == DOWN { (self.hidden, self.intermediate) } else { (self.intermediate, self.hidden) };
            let seed = ((layer * self.experts + expert) * 3 + projection) as u64;
            let mut scales: Vec<u8> = noise(seed + 7_000, rows * cols / 16).iter().map(|b| b % 0x7f).collect();
            if self.lossless_cast {
                scales.chunks_mut(2).for_each(|pair| pair.fill(0x08 + pair[0] / 8 % 14 * 8));
            }
            let mut put =
                |tensor: &str, value: Tensor| tensors.insert(self.name(layer, expert, projection, tensor), value);
            put("weight", Tensor { dtype: Dtype::U8, shape: vec![rows, cols / 2], data: noise(seed, rows * cols / 2) });
            put("weight_scale", Tensor { dtype: Dtype::F8_E4M3, shape: vec![rows, cols / 16], data: scales });
            put("weight_scale_2", Tensor::scalar(self.stored(0.001 * (1 + seed / 3) as f32)));
            put("input_scale", Tensor::scalar(self.stored(0.002 * (1 + seed) as f32)));
        }
        let mut config = serde_json::json!({
            "model_type": if self.deepseek_names { "deepseek_v4" } else { "qwen3_moe" },
            "hidden_size": self.hidden, "moe_intermediate_size": self.intermediate, "num_experts_per_tok": 2,
            "quantization_config": {"quant_method": if self.compressed_tensors { "compressed-tensors" } else { "modelopt" }},
        });
        config[if self.deepseek_names { "n_routed_experts" } else { "num_experts" }] = self.experts.into();
        Made { spec: self.clone(), tensors, config }
    }

    fn matrices(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let experts = self.experts;
        (0..self.layers).flat_map(move |l| (0..experts).flat_map(move |e| (0..3).map(move |p| (l, e, p))))
    }
}

impl Made {
    /// A tensor of layer 0, to be broken.
    pub fn tensor(&mut self, expert: usize, projection: usize, tensor: &str) -> &mut Tensor {
        self.tensors.get_mut(&self.spec.name(0, expert, projection, tensor)).unwrap()
    }

    /// Its bytes in any layer.
    pub fn data(&self, layer: usize, expert: usize, projection: usize, tensor: &str) -> &[u8] {
        &self.tensors[&self.spec.name(layer, expert, projection, tensor)].data
    }

    /// The value of an f32 scalar of any layer, as stored.
    pub fn value(&self, layer: usize, expert: usize, projection: usize, tensor: &str) -> f32 {
        f32::from_le_bytes(self.data(layer, expert, projection, tensor).try_into().unwrap())
    }

    /// One safetensors file of the tensors that `wanted` names.
    pub fn file(&self, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
        let views = self.tensors.iter().filter(|(name, _)| wanted(name)).map(|(name, tensor)| {
            (name.as_str(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    /// `config.json` and `model.safetensors`.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([
            ("config.json".to_owned(), self.config.to_string().into_bytes()),
            ("model.safetensors".to_owned(), self.file(|_| true)),
        ])
    }

    /// The same tensors in one file for each layer, with an index.
    pub fn sharded(&self) -> BTreeMap<String, Vec<u8>> {
        let shard = |layer: usize| format!("model-{:05}-of-{:05}.safetensors", layer + 1, self.spec.layers);
        let layer_of = |name: &str| (0..self.spec.layers).find(|l| name.contains(&format!("layers.{l}."))).unwrap_or(0);
        let mut files = self.files();
        files.remove("model.safetensors");
        for layer in 0..self.spec.layers {
            files.insert(shard(layer), self.file(|name| layer_of(name) == layer));
        }
        let weight_map: BTreeMap<_, _> = self.tensors.keys().map(|name| (name, shard(layer_of(name)))).collect();
        let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
        files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
        files
    }
}

/// Write files into a directory.
pub fn write(directory: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
}
