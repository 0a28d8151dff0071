// SPDX-License-Identifier: Apache-2.0
//! `nvfp4-moe`: look into a checkpoint.

use clap::{Parser, Subcommand};
use nvfp4_moe::checkpoint::{Checkpoint, namings_in_words};
use nvfp4_moe::error::Result;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// With what the library was built for.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("NVFP4_MOE_BUILT_IN"), ")");

/// The NVFP4 mixture-of-experts layer, from the command line.
///
/// Exit status: 0 fine, 1 refused, 2 wrong usage.
#[derive(Parser)]
#[command(version = VERSION)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the NVFP4 and MXFP4 MoE layers of a checkpoint, with every scale checked, and what to watch out for.
    Inspect {
        /// Directory of safetensors files with their config.json.
        directory: PathBuf,
        /// Only this layer.
        #[arg(long)]
        layer: Option<u32>,
        /// Only tensors whose names begin so: one tower of several, such as `thinker.`.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Command::Inspect { directory, layer, prefix, json } = Arguments::parse().command;
    match inspect(&directory, layer, &prefix, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nvfp4-moe: {error}");
            ExitCode::from(1)
        }
    }
}

/// Print the report; true if every layer is accepted, and there is one.
fn inspect(directory: &Path, layer: Option<u32>, prefix: &str, json: bool) -> Result<bool> {
    let checkpoint = Checkpoint::open_prefix(directory, prefix)?;
    let report = checkpoint.inspect(layer, |layer| eprintln!("reading the scales of layer {layer}"));
    let text = if json { report.to_json()? + "\n" } else { report.to_table()? };
    let _ = std::io::stdout().write_all(text.as_bytes()); // a reader that stops early, as `head` does, is no error
    if report.layers.is_empty() && report.refused.is_empty() {
        eprintln!(
            "nvfp4-moe: the checkpoint has no FP4 MoE layer that can be read; tensors must be named {}. Check the \
             directory, and what was skipped.",
            namings_in_words()
        );
    }
    Ok(report.is_accepted())
}
