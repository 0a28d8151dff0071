// SPDX-License-Identifier: Apache-2.0
//! The self-test of a device's own kernels, forced where they were proved: on the driver of this machine, if it has one, or
//! on the stand-in of `tests/mock_libcuda`, in a process of its own.
#![cfg(feature = "cuda")]

use nvfp4_moe::cuda::facts::self_test;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;
use std::{env, fs};

/// Says what a run without and one with a spoilt weight come to. Run by hand where there is a GPU:
/// `cargo test --release --test self_test -- --ignored --nocapture`.
#[test]
#[ignore = "needs a GPU, or the stand-in that the other test lends"]
fn on_a_device() {
    for is_planted in [false, false, true] {
        let start = Instant::now();
        let outcome = self_test(0, is_planted);
        println!("planted {is_planted}, {} ms: {outcome:?}", start.elapsed().as_millis());
    }
}

/// The test above on the stand-in, where every copy of a comparison's result to the host is full of this byte.
fn on_the_stand_in(folder: &Path, difference: &str, capturing: &str) -> String {
    let child = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "on_a_device", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env("MOCK_DIFFERENCE", difference)
        .env("MOCK_CAPTURING", capturing)
        .output();
    let Output { status, stdout, stderr } = child.expect("this program starts");
    let (said, calls) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{said}{calls}");
    said + &calls
}

#[test]
fn equal_bits_pass_and_others_are_refused_with_both() {
    if nvfp4_moe::BUILT_IN == "cpu" {
        return; // there is nothing to test
    }
    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("libcuda.so.1");
    let status = Command::new("cc").args(["-shared", "-fPIC", "tests/mock_libcuda/mock.c", "-o"]).arg(&driver).status();
    assert!(status.unwrap().success());
    fs::copy(&driver, folder.path().join("libcuda.so")).unwrap();

    let said = on_the_stand_in(folder.path(), "0", "0");
    assert_eq!(said.matches(" ms: Ok(())").count(), 3, "{said}");
    let compared = said.matches("cuLaunchKernelEx compare_values").count();
    // Three layers and a linear; bf16, static and dynamic scales; tiles of 11 sizes; many tokens and few.
    assert_eq!(compared, 3 * 4 * 3 * 11 * 2);
    assert_eq!(
        said.matches("call cuMemAlloc").count(),
        said.matches("call cuMemFree").count() + 2,
        "all but the status and the word of arrivals, which the device keeps"
    );

    // Every stream of a caller's is being captured in the strictest mode: no call breaks that, or is refused.
    let said = on_the_stand_in(folder.path(), "0", "1");
    assert_eq!(said.matches(" ms: Ok(())").count(), 3, "{said}");

    let said = on_the_stand_in(folder.path(), "1", "0");
    let wrong = "device_kind is 1 (own kernels), which fail their self-test on CUDA device 0 (compute capability 9.0): mode \
                 Bf16, Static scales, SwiGLU, 203 tokens in tiles of 8: row 0, column 0 is 0 by its own kernels and 0 by the portable ones; \
                 16843009 of 107184 values differ, and none may. Pass 2, the portable kernels (cuda-portable)";
    assert_eq!(said.matches(wrong).count(), 3, "{said}");
}
