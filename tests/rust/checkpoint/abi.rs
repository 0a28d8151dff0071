// SPDX-License-Identifier: Apache-2.0
//! The reader as C sees it.

use crate::made::{DOWN, Made, Spec, Tensor, write};
use nvfp4_moe::abi::exports::*;
use nvfp4_moe::abi::header::*;
use safetensors::tensor::Dtype;
use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

struct Handle(*mut nvfp4_moe_checkpoint);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by open() and not used again.
        unsafe { nvfp4_moe_checkpoint_destroy(self.0) }
    }
}

fn last_error() -> String {
    let mut buf = [0u8; 1000];
    // SAFETY: buf is writable for its length.
    let len = unsafe { nvfp4_moe_last_error(buf.as_mut_ptr().cast(), buf.len()) };
    String::from_utf8(buf[..len.min(buf.len() - 1)].to_vec()).unwrap()
}

fn open(spec: &Spec, change: impl Fn(&mut crate::made::Made)) -> Handle {
    let directory = tempfile::tempdir().unwrap();
    let mut made = spec.made();
    change(&mut made);
    write(directory.path(), &made.files());
    let path = CString::new(directory.path().to_str().unwrap()).unwrap();
    let mut handle = null_mut();
    // SAFETY: both pointers are valid. The files stay open when the directory goes.
    assert_eq!(unsafe { nvfp4_moe_checkpoint_open(path.as_ptr(), &mut handle) }, 0, "{}", last_error());
    Handle(handle)
}

fn info() -> nvfp4_moe_checkpoint_layer_info {
    nvfp4_moe_checkpoint_layer_info {
        struct_size: size_of::<nvfp4_moe_checkpoint_layer_info>() as u32,
        ..Default::default()
    }
}

#[test]
fn a_layer_is_described_and_copied() {
    let spec = Spec { compressed_tensors: true, lossless_cast: true, ..Spec::default() };
    let handle = open(&spec, |made| made.config["swiglu_limit"] = 10.0.into());
    let mut info = info();
    // SAFETY: the handle is open and info is a struct with its size set.
    assert_eq!(unsafe { nvfp4_moe_checkpoint_layer_info_read(handle.0, 0, &mut info) }, 0, "{}", last_error());
    let sizes = [info.hidden_size, info.intermediate_size, info.num_experts, info.top_k];
    assert_eq!(sizes, [64, 32, 3, 2]);
    assert_eq!(info.format as u32, NVFP4_MOE_FORMAT_COMPRESSED_TENSORS);
    assert_eq!((info.lossless_cast, info.swiglu_limit, info.struct_size), (1, 10.0, 72));
    assert_eq!((info.swiglu_alpha, info.swiglu_beta), (1.0, 0.0));
    let made = spec.made();
    assert_eq!(info.w2_input_scale, 1.0 / made.value(0, 2, DOWN, "input_scale"));

    let (mut w13, mut w13_block_scale) = (vec![0u8; 2 * 2 * 1024], vec![0u8; 2 * 2 * 128]);
    let (mut w2, mut w2_block_scale) = (vec![0u8; 2 * 1024], vec![0u8; 2 * 128]);
    let (mut w13_global_scale, mut w2_global_scale) = ([0f32; 4], [0f32; 2]);
    let buffers = nvfp4_moe_checkpoint_buffers {
        struct_size: 64,
        first_expert: 1,
        num_experts: 2,
        reserved: 0,
        w13: w13.as_mut_ptr(),
        w13_block_scale: w13_block_scale.as_mut_ptr(),
        w13_global_scale: w13_global_scale.as_mut_ptr(),
        w2: w2.as_mut_ptr(),
        w2_block_scale: w2_block_scale.as_mut_ptr(),
        w2_global_scale: w2_global_scale.as_mut_ptr(),
        ..Default::default()
    };
    // SAFETY: the buffers are as long as two experts need.
    assert_eq!(unsafe { nvfp4_moe_checkpoint_read_layer(handle.0, 0, &buffers) }, 0, "{}", last_error());
    assert_eq!(w2[1024..], *made.data(0, 2, DOWN, "weight"));
    assert_eq!(w2_block_scale[..128], *made.data(0, 1, DOWN, "weight_scale"));
    assert_eq!(w2_global_scale, [1, 2].map(|e| 1.0 / made.value(0, e, DOWN, "weight_scale_2")));

    for (change, text) in [
        (nvfp4_moe_checkpoint_buffers { first_expert: 2, ..buffers }, "2 + 2; layers.0.ffn has 3 experts"),
        (nvfp4_moe_checkpoint_buffers { first_expert: -1, ..buffers }, "first_expert is -1"),
        (nvfp4_moe_checkpoint_buffers { num_experts: i32::MAX, ..buffers }, "1 + 2147483647"),
        (nvfp4_moe_checkpoint_buffers { w2: null_mut(), ..buffers }, "w2 is NULL"),
        (nvfp4_moe_checkpoint_buffers { struct_size: 0, ..buffers }, "struct_size is 0"),
        (
            nvfp4_moe_checkpoint_buffers { w2_global_scale: w2.as_mut_ptr().wrapping_add(1).cast(), ..buffers },
            "it must be a multiple of 4",
        ),
    ] {
        // SAFETY: refused before any buffer is written.
        assert_eq!(unsafe { nvfp4_moe_checkpoint_read_layer(handle.0, 0, &change) }, 1);
        assert!(last_error().contains(text), "{}", last_error());
    }
}

#[test]
fn an_activation_is_told_or_refused_and_an_older_struct_is_never_written_past_its_end() {
    let handle = open(&Spec::default(), |made| {
        made.config["hidden_act"] = "swigluoai".into();
        made.config["swiglu_limit"] = 5.0.into();
    });
    let read = |handle: &Handle, info: &mut nvfp4_moe_checkpoint_layer_info| {
        // SAFETY: the handle is open and the struct is as long as its size says.
        let status = unsafe { nvfp4_moe_checkpoint_layer_info_read(handle.0, 0, info) };
        status as u32
    };
    let mut told = info();
    assert_eq!(read(&handle, &mut told), NVFP4_MOE_OK, "{}", last_error());
    assert_eq!((told.swiglu_limit, told.swiglu_alpha, told.swiglu_beta), (5.0, 1.702, 1.0));
    let mut older = nvfp4_moe_checkpoint_layer_info { struct_size: 48, ..Default::default() };
    assert_eq!(read(&handle, &mut older), NVFP4_MOE_INVALID_ARGUMENT);
    assert!(
        last_error().contains("struct_size is 48; the layer's activation is swiglu alpha 1.702"),
        "{}",
        last_error()
    );

    let silu = open(&Spec::default(), |_| {});
    let canary = -77.0;
    let mut older = nvfp4_moe_checkpoint_layer_info { struct_size: 48, swiglu_alpha: canary, ..Default::default() };
    assert_eq!(read(&silu, &mut older), NVFP4_MOE_OK, "{}", last_error());
    assert_eq!((older.hidden_size, older.struct_size, older.swiglu_alpha), (64, 48, canary));

    let relu = open(&Spec::default(), |made| made.config["hidden_act"] = "relu".into());
    let mut untouched = info();
    assert_eq!(read(&relu, &mut untouched), NVFP4_MOE_UNSUPPORTED);
    assert!(
        last_error().starts_with("hidden_act in config.json is relu; this library computes silu"),
        "{}",
        last_error()
    );
    assert_eq!(untouched.hidden_size, 0);
    let mut any = nvfp4_moe_checkpoint_layer_info { any_activation: 1, ..info() };
    assert_eq!(read(&relu, &mut any), NVFP4_MOE_OK, "{}", last_error());
    assert_eq!((any.hidden_size, any.swiglu_alpha), (64, 0.0));
    let mut nonsense = nvfp4_moe_checkpoint_layer_info { any_activation: 2, ..info() };
    assert_eq!(read(&silu, &mut nonsense), NVFP4_MOE_INVALID_ARGUMENT);
}

#[test]
fn a_struct_from_before_other_activations_and_biases_is_refused_such_a_layer() {
    let relu2 = |made: &mut Made| {
        made.tensors.retain(|name, _| !name.contains(".w3."));
        made.config["mlp_hidden_act"] = "relu2".into();
    };
    let biased = |made: &mut Made| {
        for expert in 0..3 {
            let name = made.spec.name(0, expert, DOWN, "bias");
            made.tensors.insert(name, Tensor { dtype: Dtype::BF16, shape: vec![64], data: vec![0; 128] });
        }
    };
    type Change = fn(&mut Made);
    let checks: [(Change, u32, i32, &str); 2] = [
        (relu2, NVFP4_MOE_ACTIVATION_RELU2, 0, "the layer's activation is relu2, no gate, which takes 72 bytes"),
        (biased, NVFP4_MOE_ACTIVATION_SWIGLU, 1, "is silu, and its experts have biases, which takes 72 bytes"),
    ];
    for (change, activation, has_bias, text) in checks {
        let handle = open(&Spec::default(), change);
        let read = |size: u32| {
            let mut info =
                nvfp4_moe_checkpoint_layer_info { struct_size: size, any_activation: 1, ..Default::default() };
            // SAFETY: the handle is open; the struct is at least as long as its size says.
            (unsafe { nvfp4_moe_checkpoint_layer_info_read(handle.0, 0, &mut info) } as u32, info)
        };
        let (status, told) = read(72);
        assert_eq!((status, told.activation, told.has_bias), (NVFP4_MOE_OK, activation as i32, has_bias));
        assert_eq!(read(64).0, NVFP4_MOE_INVALID_ARGUMENT);
        assert!(last_error().contains(text), "{}", last_error());
        // Its buffers have no place for biases, and are written only where none are needed.
        let mut bytes = [0u8; 64 * 64];
        let (at, scale) = (bytes.as_mut_ptr(), &mut [0.0f32; 2] as *mut f32);
        let old = nvfp4_moe_checkpoint_buffers {
            struct_size: 64,
            num_experts: 1,
            w13: at,
            w13_block_scale: at.wrapping_add(64 * 32),
            w13_global_scale: scale,
            w2: at.wrapping_add(64 * 40),
            w2_block_scale: at.wrapping_add(64 * 56),
            w2_global_scale: scale.wrapping_add(1),
            ..Default::default()
        };
        // SAFETY: each buffer is as long as one expert needs.
        let status = unsafe { nvfp4_moe_checkpoint_read_layer(handle.0, 0, &old) } as u32;
        assert_eq!(status, if has_bias == 1 { NVFP4_MOE_INVALID_ARGUMENT } else { NVFP4_MOE_OK });
        assert!(has_bias == 0 || last_error().starts_with("w13_bias is NULL"), "{}", last_error());
    }
}

#[test]
fn a_prefix_opens_one_tower() {
    let directory = tempfile::tempdir().unwrap();
    let mut made = Spec::default().made();
    made.tensors.extend(Spec { deepseek_names: false, ..Spec::default() }.made().tensors);
    write(directory.path(), &made.files());
    let path = CString::new(directory.path().to_str().unwrap()).unwrap();
    for (prefix, code) in
        [(c"", NVFP4_MOE_CHECKPOINT), (c"model.", NVFP4_MOE_OK), (c"none.", NVFP4_MOE_INVALID_ARGUMENT)]
    {
        let mut handle = null_mut();
        // SAFETY: all pointers are valid.
        unsafe {
            assert_eq!(nvfp4_moe_checkpoint_open_prefix(path.as_ptr(), prefix.as_ptr(), &mut handle), 0);
            let handle = Handle(handle);
            assert_eq!(nvfp4_moe_checkpoint_layer_info_read(handle.0, 0, &mut info()) as u32, code, "{}", last_error());
        }
    }
}

#[test]
fn refusals_have_their_codes_and_leave_outputs_alone() {
    let handle = open(&Spec::default(), |made| made.tensor(0, DOWN, "weight_scale").data[0] = 0x7f);
    let mut described = info();
    // SAFETY: the handle is open, and pointers are NULL or valid.
    unsafe {
        let read = |layer, out| nvfp4_moe_checkpoint_layer_info_read(handle.0, layer, out);
        assert_eq!(read(0, &mut described) as u32, NVFP4_MOE_CHECKPOINT);
        assert!(last_error().contains("layers.0.ffn.experts.0.w2.weight_scale[0, 0] is NaN"), "{}", last_error());
        assert_eq!(read(1, &mut described) as u32, NVFP4_MOE_INVALID_ARGUMENT);
        assert_eq!(read(-1, &mut described) as u32, NVFP4_MOE_INVALID_ARGUMENT);
        assert_eq!(read(0, null_mut()) as u32, NVFP4_MOE_INVALID_ARGUMENT);
        assert_eq!(nvfp4_moe_checkpoint_layer_info_read(null(), 0, &mut described), 1);
        assert_eq!((described.struct_size, described.hidden_size), (72, 0));

        let mut none = null_mut();
        assert_eq!(nvfp4_moe_checkpoint_open(c"/no/such/model".as_ptr(), &mut none) as u32, NVFP4_MOE_IO);
        assert_eq!(nvfp4_moe_checkpoint_open(null(), &mut none) as u32, NVFP4_MOE_INVALID_ARGUMENT);
        assert!(none.is_null());
        nvfp4_moe_checkpoint_destroy(null_mut());
    }
}

#[test]
fn the_report_is_cut_to_the_buffer_and_its_full_length_told() {
    let handle = open(&Spec::default(), |_| {});
    let mut full_length = 0;
    let ask = |as_json, buf: *mut c_char, size, full_length: *mut usize| {
        // SAFETY: buf is NULL or writable for size bytes.
        unsafe { nvfp4_moe_checkpoint_inspect(handle.0, as_json, buf, size, full_length) }
    };
    for (as_json, part) in [(0, "modelopt"), (1, "\"lossless_cast\": false"), (2, "\"hidden_size\": 64")] {
        assert_eq!(ask(as_json, null_mut(), 0, &mut full_length), 0);
        let mut buf = vec![0u8; full_length + 1];
        assert_eq!(ask(as_json, buf.as_mut_ptr().cast(), buf.len(), &mut full_length), 0);
        let text = std::str::from_utf8(&buf[..full_length]).unwrap();
        assert!(text.contains(part) && buf[full_length] == 0, "{text}");
        assert!(as_json != 2 || !text.contains("lossless_cast"), "a survey reads no block scale");
        let mut short = [0xffu8; 8];
        assert_eq!(ask(as_json, short.as_mut_ptr().cast(), 8, &mut full_length), 0);
        assert_eq!((short[..7].to_vec(), short[7]), (text.as_bytes()[..7].to_vec(), 0));
    }
    assert_eq!(ask(0, null_mut(), 0, null_mut()), 1);
}
