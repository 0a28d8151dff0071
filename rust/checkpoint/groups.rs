// SPDX-License-Identifier: Apache-2.0
//! Groups of routed experts: all tensors of one stem, and whether they are an NVFP4 layer.

use super::config::Config;
use super::dims::Projection;
use super::dtype::Dtype;
use super::files::Files;
use super::header::Tensor;
use super::names::{layer_of, split};
use super::namings::{
    BIAS, FORMATS, Form, INTERLEAVING_MODELS, MXFP4_FORMATS, PROJECTIONS, Tensors, WITHOUT_GATE, all_projections,
    beyond_format, quantisation_or_unknown,
};
use super::text::{printable, shorten};
use std::collections::BTreeMap;

/// All tensors of one stem and form.
#[derive(Debug)]
pub struct Group {
    /// `layers.3.ffn`, `model.layers.3.mlp`, `mtp.0.ffn`, ...
    pub stem: String,
    form: Form,
    /// The largest E, plus one.
    pub num_experts: u64,
    /// Each (projection, tensor) with the first that has it.
    kinds: BTreeMap<(String, String), Kind>,
    /// What gate, up and down are called here; gate is empty where there is none.
    projections: [&'static str; 3],
    /// Are gate and up of one matrix row by row in turn?
    interleaved: bool,
    /// Are matrices stored by columns, input features first?
    by_columns: bool,
}

/// Tensors that differ only in the expert's number.
#[derive(Debug)]
struct Kind {
    /// Name of the first.
    name: String,
    /// Its dtype and shape; none if it cannot be had.
    held: Option<(Dtype, Box<[u64]>)>,
    /// How many there are.
    count: u64,
}

impl Group {
    /// A tensor of an expert, by its name in the table of formats.
    pub fn tensor(&self, expert: usize, projection: Projection, tensor: &str) -> String {
        let name = self.projections[projection as usize];
        match self.form {
            Form::ExpertFirst => format!("{}.experts.{expert}.{name}.{tensor}", self.stem),
            Form::ProjectionFirst => format!("{}.experts.{name}.{expert}.{tensor}", self.stem),
            Form::Stacked | Form::StackedInBlock => match self.kind(name, tensor) {
                Some(kind) => kind.name.clone(),
                None => format!("{}.{name}.{tensor}", self.path()),
            },
        }
    }

    /// `layers.3.ffn.experts`
    pub fn path(&self) -> String {
        let block = if self.form == Form::StackedInBlock { "moe" } else { "experts" };
        format!("{}.{block}", self.stem)
    }

    /// Does one tensor hold all experts?
    pub fn is_stacked(&self) -> bool {
        self.form.is_stacked()
    }

    /// Do gate and up lie in one matrix?
    pub fn is_fused(&self) -> bool {
        self.projections[0] == self.projections[1]
    }

    /// Are its rows gate's and up's in turn?
    pub fn is_interleaved(&self) -> bool {
        self.interleaved
    }

    /// Are codes and block scales `[columns, rows]`?
    pub fn is_by_columns(&self) -> bool {
        self.by_columns
    }

    /// Is there a gate?
    pub fn is_gated(&self) -> bool {
        !self.projections[0].is_empty()
    }

    /// Has any expert a bias of that projection?
    pub fn has_bias(&self, projection: Projection) -> bool {
        self.kind(self.projections[projection as usize], BIAS).is_some()
    }

    /// The layer's index, or why it is none of the model's layers.
    pub fn layer(&self) -> Result<u32, String> {
        layer_of(&self.stem)
    }

    fn kind(&self, projection: &str, tensor: &str) -> Option<&Kind> {
        let find = |tensor: &str| self.kinds.get(&(projection.to_owned(), tensor.to_owned()));
        // A stacked weight may be called as its projection is.
        find(tensor).or_else(|| if self.is_stacked() && tensor == "weight" { find("") } else { None })
    }

    /// How many of the matrices have an input scale, of how many.
    pub fn input_scales(&self) -> (u64, u64) {
        let count = |of: &dyn Fn(&Tensors) -> &'static str| {
            let rows = || FORMATS.iter().chain(&MXFP4_FORMATS);
            let named = |tensor: &str| !tensor.is_empty() && rows().any(|row| of(row) == tensor);
            self.kinds.iter().filter(|((_, tensor), _)| named(tensor)).map(|(_, kind)| kind.count).sum()
        };
        (count(&|row| row.input_scale), count(&|row| row.block_scale))
    }

    /// How experts that are not NVFP4 are quantised.
    pub fn other_quantisation(&self) -> &'static str {
        quantisation_or_unknown(|tensor| {
            self.kinds.keys().any(|(_, t)| t == tensor || t.is_empty() && tensor == "weight")
        })
    }

    /// Is any of its tensors one that only NVFP4 has?
    pub fn looks_nvfp4(&self) -> bool {
        let second_level =
            |(_, tensor): &(String, String)| FORMATS.iter().any(|row| tensor.ends_with(row.global_scale));
        let held =
            |dtype: &dyn Fn(&Dtype) -> bool| self.kinds.values().filter_map(|k| k.held.as_ref()).any(|(d, _)| dtype(d));
        let codes_with_scales = held(&|d| d.codes_an_element().is_some()) && held(&|d| *d == Dtype::F8_E4M3);
        self.kinds.keys().any(second_level) || codes_with_scales
    }

    /// Its row among the namings of MXFP4, if its tensors have one.
    pub fn mxfp4(&self, config: &Config) -> Option<&'static Tensors> {
        let held =
            |tensor: &str| self.kinds.iter().find(|((_, t), _)| t == tensor).and_then(|(_, kind)| kind.held.as_ref());
        let dtype = |tensor: &str| held(tensor).map(|(dtype, _)| dtype);
        let fits = |row: &&Tensors| {
            let codes = dtype(row.codes).is_some_and(|dtype| row.codes_an_element(dtype).is_some());
            let scales = dtype(row.block_scale);
            let bytes_are_e8m0 = row.in_blocks || config.says_mxfp4();
            codes && (scales == Some(&Dtype::F8_E8M0) || scales == Some(&Dtype::U8) && bytes_are_e8m0)
        };
        if self.looks_nvfp4() { None } else { MXFP4_FORMATS.iter().find(fits) }
    }

    /// Decide what gate, up and down are called, and in which format they are; or say why this is no layer to read.
    pub fn settle(&mut self, config: &Config) -> Result<&'static Tensors, String> {
        let mxfp4 = self.mxfp4(config);
        if mxfp4.is_none() && !self.looks_nvfp4() {
            let fp8 = self.kinds.values().any(|kind| matches!(kind.held, Some((Dtype::F8_E8M0, _))));
            let guess = if fp8 { ", as FP8 does" } else { "" };
            let reason =
                format!("its experts hold {}{guess}; NVFP4 has U8 codes with F8_E4M3 block scales", self.held());
            return Err(reason);
        }
        self.projections = self.find_projections()?;
        self.interleaved = self.is_fused() && config.model_type_of(&INTERLEAVING_MODELS).is_some();
        let nvfp4 = || FORMATS.iter().find(|row| (row.of_config)(config) && self.has_format(row));
        let row = mxfp4.or_else(nvfp4).ok_or_else(|| {
            let known: Vec<_> = FORMATS
                .iter()
                .map(|row| format!("{} + {} + {}", row.codes, row.block_scale, row.global_scale))
                .collect();
            format!("its experts hold {}, which are the tensors of no known format ({})", self.held(), known.join("; "))
        })?;
        if self.is_fused() || self.is_stacked() {
            self.by_columns = self.find_orientation(row)?;
        }
        Ok(row)
    }

    fn has_format(&self, row: &Tensors) -> bool {
        let kinds = |tensor: &str| self.projections.iter().filter_map(|p| self.kind(p, tensor)).next();
        let dtype = |tensor: &str| kinds(tensor).and_then(|kind| kind.held.as_ref()).map(|(dtype, _)| dtype);
        kinds(row.global_scale).is_some()
            || dtype(row.block_scale) == Some(&Dtype::F8_E4M3)
                && dtype(row.codes).is_some_and(|dtype| dtype.codes_an_element().is_some())
    }

    fn find_projections(&self) -> Result<[&'static str; 3], String> {
        let has = |name: &&str| self.kinds.keys().any(|(projection, _)| projection == *name);
        if let Some(row) = PROJECTIONS.iter().find(|row| row.iter().all(&has)) {
            return Ok(*row);
        }
        // Experts with two of the three matrices are whole, and of another kind: down(act(up(x))). Whether the config says
        // so is asked where the activation is (activation.rs).
        if let Some([up, down]) = WITHOUT_GATE.iter().find(|row| row.iter().all(&has)) {
            return Ok(["", up, down]);
        }
        let mut found: Vec<_> = self.kinds.keys().map(|(projection, _)| projection.as_str()).collect();
        found.dedup();
        let known: Vec<_> = all_projections().collect();
        let (found, held, known) = (shorten(&found), self.held(), known.join(", "));
        Err(format!("its experts have {found} ({held}), and known matrices are {known}"))
    }

    /// Blocks must lie along the reduction, and which rows are gate's must be certain: are the matrices of a stack stored by
    /// columns, as transformers computes with them? No shapes fit both ways.
    fn find_orientation(&self, row: &Tensors) -> Result<bool, String> {
        let shape = |projection: Projection, by_columns: bool| {
            let name = self.projections[projection as usize];
            let (dtype, shape) = self.kind(name, row.codes)?.held.as_ref()?;
            row.matrix(dtype, if self.is_stacked() { shape.get(1..)? } else { shape }, by_columns)
        };
        let parts = if self.is_fused() { 2 } else { 1 };
        let first = Projection::of_expert(self.is_gated())[0];
        let both = |by_columns| shape(first, by_columns).zip(shape(Projection::Down, by_columns));
        let Some((gate, down)) = both(false) else {
            let stack = if self.is_stacked() { "experts, " } else { "" };
            let (held, columns) = (self.held(), row.columns_in_words());
            return Err(format!("its experts hold {held}; codes must be U8 or F4 of extents ({stack}rows, {columns})"));
        };
        let fits = |(gate, down): ([u64; 2], [u64; 2])| gate[0] == down[1].saturating_mul(parts) && gate[1] == down[0];
        if fits((gate, down)) {
            return Ok(false);
        }
        if self.is_stacked() && both(true).is_some_and(fits) {
            return Ok(true);
        }
        Err(format!(
            "its matrices are {gate:?} and {down:?}; they must be [{}I, H] and [H, I], or both by columns with two \
             neighbours of a row in a byte (others have their blocks across the reduction)",
            if parts == 2 { "2" } else { "" }
        ))
    }

    /// `weight U8, weight_scale F8_E4M3`
    fn held(&self) -> String {
        let mut held: Vec<_> = self
            .kinds
            .iter()
            .map(|((projection, tensor), kind)| {
                let dtype = kind.held.as_ref().map_or("of an absent file".to_owned(), |(dtype, _)| dtype.to_string());
                format!("{} {dtype}", if tensor.is_empty() { projection } else { tensor })
            })
            .collect();
        held.sort();
        held.dedup();
        printable(held.join(", "))
    }

    /// Why no engine of plain NVFP4 computes the layer, if a tensor says so.
    pub fn beyond_format(&self) -> Option<String> {
        let mut kinds = self.kinds.iter();
        let (name, meaning) = kinds.find_map(|((_, tensor), kind)| Some((&kind.name, beyond_format(tensor)?)))?;
        Some(format!("{} is present; {meaning}, and this library does not", printable(name)))
    }

    /// The name of a tensor that the format does not know; to ignore it could change the layer's result.
    pub fn unknown_tensor(&self, row: &Tensors) -> Option<&str> {
        let bare = |tensor: &str| tensor.is_empty() && self.is_stacked();
        let ours = |projection: &String| self.projections.contains(&projection.as_str());
        let known = |((projection, tensor), kind): &(&(String, String), &Kind)| {
            let unquantised = tensor == "weight" && kind.held.as_ref().is_some_and(|(dtype, _)| dtype.is_unquantised());
            ours(projection) && (row.knows(tensor) || bare(tensor) || unquantised)
        };
        self.kinds.iter().find(|kind| !known(kind)).map(|(_, kind)| kind.name.as_str())
    }
}

/// Has the weight of a module 3 extents?
fn is_stack(files: &Files, module: &str) -> bool {
    let names = FORMATS.iter().map(|row| format!("{module}.{}", row.codes)).chain([module.to_owned()]);
    names.filter_map(|name| files.find(&name).ok().flatten()).any(|tensor| tensor.shape.len() == 3)
}

/// Every group of routed experts, in order of layer, and every other tensor, of names that begin with `prefix`.
pub fn find_groups<'a>(files: &'a Files, prefix: &str) -> (Vec<Group>, Vec<(&'a str, Option<&'a Tensor>)>) {
    let mut groups = BTreeMap::<(&str, Form), Group>::new();
    let mut others = Vec::new();
    for (name, tensor) in files.names().filter(|(name, _)| name.starts_with(prefix)) {
        let Some(parts) = split(name, |module| is_stack(files, module)) else {
            others.push((name, tensor));
            continue;
        };
        let group = groups.entry((parts.stem, parts.form)).or_insert_with(|| Group {
            stem: parts.stem.to_owned(),
            form: parts.form,
            num_experts: 0,
            kinds: BTreeMap::new(),
            projections: [""; 3],
            interleaved: false,
            by_columns: false,
        });
        let of_stack = tensor.filter(|t| parts.form.is_stacked() && t.shape.len() >= 3).map_or(0, |t| t.shape[0]);
        group.num_experts = group.num_experts.max(u64::from(parts.expert) + 1).max(of_stack);
        let key = (parts.projection.to_owned(), parts.tensor.to_owned());
        let first =
            || Kind { name: name.to_owned(), held: tensor.map(|t| (t.dtype.clone(), t.shape.clone())), count: 0 };
        group.kinds.entry(key).or_insert_with(first).count += 1;
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| group.layer().map_or(u64::MAX, u64::from));
    (groups, others)
}
