//! `nvfp4-moe`: tools for NVFP4 checkpoints.

fn main() {}
