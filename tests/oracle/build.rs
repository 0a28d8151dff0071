// SPDX-License-Identifier: Apache-2.0
//! Compiles `kernels/host.hpp` and the bridge to it with the host's C++ compiler. CUDA is not needed.

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=../../kernels");
    cxx_build::bridge("src/lib.rs")
        .file("src/facts.cpp")
        .include("../../kernels")
        .std("c++17")
        .flag("-ffp-contract=off") // each operation rounds once, as on the device
        .flag("-Wno-parentheses") // kernels know C's precedence
        .flag("-Wno-unknown-pragmas") // unroll
        .warnings_into_errors(true)
        .opt_level(2)
        .compile("nvfp4_moe_oracle");
}
