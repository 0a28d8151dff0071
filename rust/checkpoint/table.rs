// SPDX-License-Identifier: Apache-2.0
//! The report as a table for a terminal.

use super::input_scale::InputScale;
use super::inspect::{RefusedLayer, Report};
use super::layer_report::LayerReport;
use super::text::printable;
use std::fmt;

const HEADINGS: [&str; 13] = [
    "layer",
    "format",
    "experts",
    "hidden",
    "inter",
    "activation",
    "dtypes",
    "MiB",
    "w13 input scale",
    "w2 input scale",
    "gate/up",
    "lossless",
    "saturates",
];

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let text = |value: &Option<String>| value.as_ref().map_or("not said".to_owned(), printable);
        let number = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        writeln!(f, "files     {} ({:.1} MiB)", self.num_files, mebibytes(self.file_bytes))?;
        writeln!(f, "model     {}", text(&config.model_type))?;
        writeln!(
            f,
            "quant     method {}, algorithm {}, experts {}",
            text(&config.quant_method),
            text(&config.quant_algo),
            text(&config.moe_quant_algo)
        )?;
        writeln!(
            f,
            "experts   top-k {}, swiglu_limit {}, routed_scaling_factor {}",
            number(config.top_k.map(|v| v.to_string())),
            number(config.swiglu_limit.map(|v| v.to_string())),
            number(config.routed_scaling_factor.map(|v| v.to_string()))
        )?;
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        let by_stem = self.layers.windows(2).any(|pair| pair[0].layer == pair[1].layer);
        rows.extend(self.layers.iter().map(|layer| row(layer, by_stem)));
        writeln!(f)?;
        write_aligned(f, &rows)?;
        write_refused(f, &self.refused)?;
        if !self.skipped.is_empty() {
            writeln!(f)?;
        }
        for skipped in self.skipped {
            writeln!(f, "skipped {}: {}.", printable(&skipped.stem), skipped.reason)?;
        }
        if !self.warnings.is_empty() {
            writeln!(f)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// A line of the table; layers go by their stem where two have one number.
fn row(layer: &LayerReport, by_stem: bool) -> [String; 13] {
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let gate_up = match layer.gate_up_different {
        0 => "equal".to_owned(),
        n => format!("{n} differ, {:.2}x", layer.gate_up_ratio),
    };
    [
        if by_stem { printable(&layer.stem) } else { layer.layer.to_string() },
        layer.format.to_string(),
        layer.dims.num_experts.to_string(),
        layer.dims.hidden_size.to_string(),
        layer.dims.intermediate_size.to_string(),
        if layer.has_bias { format!("{}, biases", layer.activation) } else { layer.activation.clone() },
        layer.dtypes.to_owned(),
        format!("{:.1}", mebibytes(layer.bytes)),
        input_scale(&layer.w13_input_scale),
        input_scale(&layer.w2_input_scale),
        gate_up,
        layer.blocks.as_ref().map_or("not read".to_owned(), |blocks| yes(blocks.lossless_cast)),
        if layer.saturation_risk { "likely" } else { "no sign" }.to_owned(),
    ]
}

/// One line for each refusal; layers that are refused for the same reason share one.
fn write_refused(f: &mut fmt::Formatter<'_>, refused: &[RefusedLayer]) -> fmt::Result {
    for same in refused.chunk_by(|a, b| a.error == b.error) {
        match same {
            [one] => writeln!(f, "\nREFUSED layer {}: {}", one.layer, one.error)?,
            [first, .., last] => writeln!(f, "\nREFUSED layers {} to {}: {}", first.layer, last.layer, first.error)?,
            [] => {}
        }
    }
    Ok(())
}

/// Maximum, spread over experts, and how many have none: `1.2e-3 x1.5 (2 missing)`.
fn input_scale(scale: &InputScale) -> String {
    if scale.num_usable == 0 {
        return "none".to_owned();
    }
    let faulty = scale.missing.len() + scale.unusable.len() + scale.left_out.len();
    let faulty = if faulty == 0 { String::new() } else { format!(" ({faulty} missing)") };
    format!("{:.2e} x{:.1}{faulty}", scale.max, scale.max / scale.min)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn write_aligned<const N: usize>(f: &mut fmt::Formatter<'_>, rows: &[[String; N]]) -> fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}
