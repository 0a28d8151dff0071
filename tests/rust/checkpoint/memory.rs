// SPDX-License-Identifier: Apache-2.0
//! Loading a layer takes its NVFP4 bytes plus 10 %, the process and all file pages included.

use crate::made::noise;
use crate::read::Copied;
use nvfp4_moe::checkpoint::Checkpoint;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

const DIRECTORY: &str = "NVFP4_MOE_TEST_CHECKPOINT";
const EXPERTS: usize = 12;
const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 3072;

/// Stream a layer of 240 MB to disk, tensor by tensor.
fn write_layer(directory: &Path) -> std::io::Result<()> {
    let mut tensors = Vec::new();
    for expert in 0..EXPERTS {
        for (projection, rows, cols) in
            [("w1", INTERMEDIATE, HIDDEN), ("w3", INTERMEDIATE, HIDDEN), ("w2", HIDDEN, INTERMEDIATE)]
        {
            let name = |suffix: &str| format!("layers.0.ffn.experts.{expert}.{projection}.{suffix}");
            tensors.push((name("weight"), "U8", vec![rows, cols / 2], rows * cols / 2));
            tensors.push((name("weight_scale"), "F8_E4M3", vec![rows, cols / 16], rows * cols / 16));
            tensors.push((name("weight_scale_2"), "F32", vec![], 4));
            tensors.push((name("input_scale"), "F32", vec![], 4));
        }
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, shape, len) in &tensors {
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + len]});
        header.insert(name.clone(), entry);
        end += len;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = BufWriter::new(std::fs::File::create(directory.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (i, (_, dtype, _, len)) in tensors.iter().enumerate() {
        let mut bytes = if *dtype == "F32" { 0.01f32.to_le_bytes().to_vec() } else { noise(i as u64, *len) };
        if *dtype == "F8_E4M3" {
            bytes.iter_mut().for_each(|b| *b %= 0x7f);
        }
        file.write_all(&bytes)?;
    }
    file.flush()?;
    std::fs::write(directory.join("config.json"), r#"{"num_experts_per_tok": 2}"#)
}

#[test]
fn peak_memory_of_reading_a_layer() {
    let directory = tempfile::tempdir().unwrap();
    write_layer(directory.path()).unwrap();
    // A process of its own, whose high-water mark has seen nothing but the load.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::read_in_a_child", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let numbers: Vec<u64> = text
        .lines()
        .find_map(|line| line.split_once("peak and layer bytes: "))
        .map(|(_, numbers)| numbers.split(' ').map(|n| n.parse().unwrap()).collect())
        .unwrap();
    let [peak, layer] = numbers[..] else { panic!("{text}") };
    println!("peak {peak} bytes, layer {layer} bytes, ratio {:.4}", peak as f64 / layer as f64);
    assert!(layer >= 200_000_000, "{layer}");
    assert!(peak > layer, "the buffers were written, so {peak} must be above {layer}");
    assert!(peak * 10 <= layer * 11, "peak is {peak} bytes; a layer of {layer} bytes may take {}", layer * 11 / 10);
}

#[test]
#[ignore = "run by peak_memory_of_reading_a_layer"]
fn read_in_a_child() {
    let directory = std::env::var_os(DIRECTORY).unwrap();
    let checkpoint = Checkpoint::open(Path::new(&directory)).unwrap();
    let layer = checkpoint.layer(0).unwrap();
    let mut copied = Copied::poisoned(&layer, EXPERTS);
    layer.read(0, copied.buffers()).unwrap();
    assert_eq!(copied.w2_global_scale, [0.01; EXPERTS]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak and layer bytes: {} {}", peak * 1024, layer.dims.bytes());
}
