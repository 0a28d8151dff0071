//! The report as a table for a terminal.

use super::inspect::{LayerReport, Report};
use super::scales::InputScale;
use std::fmt;

const HEADINGS: [&str; 12] = [
    "layer",
    "format",
    "experts",
    "hidden",
    "inter",
    "dtypes",
    "MiB",
    "w13 input scale",
    "w2 input scale",
    "gate/up",
    "lossless",
    "saturates",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not said".to_owned());
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
        rows.extend(self.layers.iter().map(row));
        writeln!(f)?;
        write_aligned(f, &rows)?;
        for refused in &self.refused {
            writeln!(f, "\nREFUSED layer {}: {}", refused.layer, refused.error)?;
        }
        if !self.skipped.is_empty() {
            writeln!(f)?;
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped {}: {}.", skipped.stem, skipped.reason)?;
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

fn row(layer: &LayerReport) -> [String; 12] {
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let gate_up = match layer.gate_up_different {
        0 => "equal".to_owned(),
        n => format!("{n} differ, {:.2}x", layer.gate_up_ratio),
    };
    [
        layer.layer.to_string(),
        layer.format.to_string(),
        layer.dims.num_experts.to_string(),
        layer.dims.hidden_size.to_string(),
        layer.dims.intermediate_size.to_string(),
        layer.dtypes.to_owned(),
        format!("{:.1}", mebibytes(layer.bytes)),
        input_scale(&layer.w13_input_scale),
        input_scale(&layer.w2_input_scale),
        gate_up,
        yes(layer.lossless_cast),
        if layer.saturation_risk { "likely" } else { "no sign" }.to_owned(),
    ]
}

/// Maximum, spread over experts, and how many have none: `1.2e-3 x1.5 (2 missing)`.
fn input_scale(scale: &InputScale) -> String {
    if scale.num_usable == 0 {
        return "none".to_owned();
    }
    let faulty = scale.missing.len() + scale.unusable.len();
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
