// SPDX-License-Identifier: Apache-2.0
//! A checkpoint of one tiny layer, and arguments of the functions that read it. (What files hold is another target's.)

use crate::source::{Source, Tensor, struct_of};
use crate::{CHOICES, COUNTS, call_with_out, check};
use nvfp4_moe::abi::{exports::*, header::*};
use std::ffi::CString;
use std::fmt::Write;
use std::os::unix::ffi::OsStringExt;
use std::ptr::null_mut;
use std::sync::OnceLock;

const HIDDEN: i64 = 32;
const INTER: i64 = 16;
const EXPERTS: i32 = 2;

/// The directory; one for each process, left to the system's temporary files.
fn directory() -> &'static CString {
    static DIRECTORY: OnceLock<CString> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("nvfp4-moe-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let (mut header, mut data) = (String::from("{"), Vec::new());
        let mut add = |name: String, dtype: &str, shape: &[i64], bytes: Vec<u8>| {
            let (start, end) = (data.len(), data.len() + bytes.len());
            let comma = if start == 0 { "" } else { "," };
            write!(header, r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
                .unwrap();
            data.extend(bytes);
        };
        for expert in 0..EXPERTS {
            for (name, rows, cols) in [("gate", INTER, HIDDEN), ("up", INTER, HIDDEN), ("down", HIDDEN, INTER)] {
                let name = format!("model.layers.0.mlp.experts.{expert}.{name}_proj");
                add(format!("{name}.weight"), "U8", &[rows, cols / 2], vec![0x21; (rows * cols / 2) as usize]);
                let scales = vec![0x38; (rows * cols / 16) as usize];
                add(format!("{name}.weight_scale"), "F8_E4M3", &[rows, cols / 16], scales);
                add(format!("{name}.weight_scale_2"), "F32", &[], 0.5f32.to_le_bytes().to_vec());
                add(format!("{name}.input_scale"), "F32", &[], 0.25f32.to_le_bytes().to_vec());
            }
        }
        header.push('}');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        std::fs::write(path.join("model.safetensors"), file).unwrap();
        std::fs::write(path.join("config.json"), r#"{"num_experts_per_tok": 1}"#).unwrap();
        CString::new(path.into_os_string().into_vec()).unwrap()
    })
}

pub fn fuzz(source: &mut Source) {
    let mut checkpoint: *mut nvfp4_moe_checkpoint = null_mut();
    // SAFETY (here and below): pointers are NULL or as the header wants them.
    let missing = c"no-such-directory";
    let path = match source.byte() {
        0 => std::ptr::null(),
        1 => missing.as_ptr(),
        _ => directory().as_ptr(),
    };
    if !check(unsafe { nvfp4_moe_checkpoint_open(path, &mut checkpoint) }) {
        assert!(checkpoint.is_null());
        return;
    }
    for _ in 0..4 {
        let handle = if source.byte() == 0 { null_mut() } else { checkpoint };
        let layer = source.rarely(0, COUNTS);
        match source.byte() % 3 {
            0 => {
                let info = nvfp4_moe_checkpoint_layer_info {
                    struct_size: size_of::<nvfp4_moe_checkpoint_layer_info>() as u32,
                    ..Default::default()
                };
                let memory = struct_of(source, &info);
                check(unsafe { nvfp4_moe_checkpoint_layer_info_read(handle, layer, memory.pointer()) });
            }
            1 => {
                let (mut full_length, size) = (0, source.size() % 5000);
                let buf = Tensor::bytes_or_null(source, Some(size as i64));
                let (size, as_json) = (if buf.is_null() { 0 } else { size }, source.pick(CHOICES));
                check(unsafe {
                    nvfp4_moe_checkpoint_inspect(handle, as_json, buf.pointer(), size as usize, &mut full_length)
                });
            }
            _ => read_layer(source, handle, layer),
        }
    }
    unsafe { nvfp4_moe_checkpoint_destroy(checkpoint) };
}

fn read_layer(source: &mut Source, checkpoint: *const nvfp4_moe_checkpoint, layer: i32) {
    let (first_expert, num_experts) = (source.rarely(0, COUNTS), source.pick(COUNTS));
    // Where there are not so many experts, the call must fail before it writes: any small buffer will do.
    let count = i64::from(num_experts.clamp(0, EXPERTS));
    let values = count * HIDDEN * INTER;
    let mut w13 = Tensor::bytes_or_null(source, Some(values));
    let others = [values / 8, count * 8, values / 2, values / 16, count * 4];
    let others = others.map(|len| Tensor::bytes_or_null(source, Some(len)));
    let buffers = nvfp4_moe_checkpoint_buffers {
        struct_size: size_of::<nvfp4_moe_checkpoint_buffers>() as u32,
        first_expert,
        num_experts,
        reserved: source.rarely(0, CHOICES),
        w13: w13.pointer(),
        w13_block_scale: others[0].pointer(),
        w13_global_scale: others[1].pointer(),
        w2: others[2].pointer(),
        w2_block_scale: others[3].pointer(),
        w2_global_scale: others[4].pointer(),
        w13_bias: null_mut(), // the layer has none
        w2_bias: null_mut(),
    };
    let memory = struct_of(source, &buffers);
    call_with_out(&mut w13, || unsafe { nvfp4_moe_checkpoint_read_layer(checkpoint, layer, memory.pointer()) });
}
