//! The kernels of this build, and their parameters.

use super::driver::check;
use super::tiles::{GEMM_ROWS, GemmKind};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::CString;

/// `kernels/all_params.h`, as bindgen reads it.
#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod params {
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

/// A fat binary that `build.rs` made.
#[derive(Debug)]
pub struct Module {
    /// Its source under `kernels/`, without `.cu`.
    pub name: &'static str,
    /// What the driver loads.
    pub image: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The only compute capability on which the modules of `kernels/hopper` run.
pub const HOPPER: (i32, i32) = (9, 0);

/// A kernel to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kernel {
    RouteSmall,
    RouteCount,
    RouteScan,
    RouteScatter,
    QuantizeRows,
    QuantizeRowsFp8,
    AmaxRows,
    SwigluRows,
    Combine,
    PartScales,
    PrepareTiles,
    PrepareSwizzled,
    PrepareAlphas,
    PrepareRowAlphas,
    GemmPortableBf16,
    GemmPortableNvfp4,
    /// A GEMM of `kernels/hopper` and its row-tile size.
    GemmSm90(GemmKind, u32),
}

/// Shared memory that routing may ask for: counters of up to this many bytes.
pub const ROUTE_SHARED_BYTES: u32 = 160 * 1024;

impl Kernel {
    /// Its name in the module.
    pub fn name(self) -> String {
        match self {
            Kernel::RouteSmall => "route_small".to_owned(),
            Kernel::RouteCount => "route_count".to_owned(),
            Kernel::RouteScan => "route_scan".to_owned(),
            Kernel::RouteScatter => "route_scatter".to_owned(),
            Kernel::QuantizeRows => "quantize_rows".to_owned(),
            Kernel::QuantizeRowsFp8 => "quantize_rows_fp8".to_owned(),
            Kernel::AmaxRows => "amax_rows".to_owned(),
            Kernel::SwigluRows => "swiglu_rows".to_owned(),
            Kernel::Combine => "combine".to_owned(),
            Kernel::PartScales => "part_scales".to_owned(),
            Kernel::PrepareTiles => "prepare_tiles".to_owned(),
            Kernel::PrepareSwizzled => "prepare_swizzled".to_owned(),
            Kernel::PrepareAlphas => "prepare_alphas".to_owned(),
            Kernel::PrepareRowAlphas => "prepare_row_alphas".to_owned(),
            Kernel::GemmPortableBf16 => "gemm_portable_bf16".to_owned(),
            Kernel::GemmPortableNvfp4 => "gemm_portable_nvfp4".to_owned(),
            Kernel::GemmSm90(kind, rows) => format!("{}_sm90_n{rows}", kind.name()),
        }
    }

    /// The module that has it.
    fn module(self) -> &'static str {
        match self {
            Kernel::RouteSmall | Kernel::RouteCount | Kernel::RouteScan | Kernel::RouteScatter => "route/route",
            Kernel::QuantizeRows => "quantize/quantize",
            Kernel::AmaxRows => "calibrate/amax",
            Kernel::Combine => "combine/combine",
            Kernel::PrepareAlphas | Kernel::PrepareRowAlphas => "prepare/alphas",
            Kernel::GemmSm90(..) => "hopper/gemm",
            Kernel::PrepareTiles => "hopper/prepare",
            Kernel::QuantizeRowsFp8 => "hopper/quantize_fp8",
            Kernel::PartScales => "hopper/scales_fp8",
            Kernel::GemmPortableBf16 | Kernel::GemmPortableNvfp4 => "portable/gemm",
            Kernel::SwigluRows => "portable/activation",
            Kernel::PrepareSwizzled => "portable/prepare",
        }
    }

    /// Dynamic shared memory that it may be launched with.
    fn max_shared_bytes(self) -> u32 {
        match self {
            Kernel::RouteSmall | Kernel::RouteCount | Kernel::RouteScatter => ROUTE_SHARED_BYTES,
            Kernel::GemmSm90(..) => params::GEMM_SM90_SHARED_BYTES,
            _ => 0,
        }
    }

    fn all() -> Vec<Kernel> {
        use Kernel::*;
        let mut all =
            vec![RouteSmall, RouteCount, RouteScan, RouteScatter, QuantizeRows, AmaxRows, SwigluRows, Combine];
        all.extend([QuantizeRowsFp8, PartScales, PrepareTiles, PrepareSwizzled, PrepareAlphas, PrepareRowAlphas]);
        all.extend([GemmPortableBf16, GemmPortableNvfp4]);
        for kind in GemmKind::ALL {
            all.extend(GEMM_ROWS.map(|rows| GemmSm90(kind, rows)));
        }
        all
    }
}

/// Every kernel of one device, loaded and sized, so that no launch loads anything.
#[derive(Debug)]
pub struct Functions(HashMap<Kernel, sys::CUfunction>);

// SAFETY: function handles belong to the context, not to a thread.
unsafe impl Send for Functions {}
// SAFETY: as above; they are never changed after loading.
unsafe impl Sync for Functions {}

impl Functions {
    /// Load all modules that run on this compute capability into the current context.
    pub fn load(capability: (i32, i32)) -> Result<Self> {
        let mut modules = HashMap::new();
        for module in MODULES {
            if module.name.starts_with("hopper/") && capability != HOPPER {
                continue;
            }
            // SAFETY: the image is a whole fat binary.
            let loaded = unsafe { result::module::load_data(module.image.as_ptr().cast()) };
            modules
                .insert(module.name, check("cuModuleLoadData", loaded, || format!("Loading kernels/{}", module.name))?);
        }
        let mut functions = HashMap::new();
        for kernel in Kernel::all() {
            if let Some(module) = modules.get(kernel.module()) {
                functions.insert(kernel, load_function(*module, kernel)?);
            }
        }
        Ok(Functions(functions))
    }

    /// The handle of a kernel.
    pub fn get(&self, kernel: Kernel) -> sys::CUfunction {
        self.0[&kernel]
    }
}

fn load_function(module: sys::CUmodule, kernel: Kernel) -> Result<sys::CUfunction> {
    use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
    let name = kernel.name();
    let during = || format!("Loading kernel {name}");
    let c_name = CString::new(name.as_str()).unwrap_or_default();
    // SAFETY: a loaded module of the current context.
    let function = check("cuModuleGetFunction", unsafe { result::module::get_function(module, c_name) }, during)?;
    // SAFETY: a function of it; loading it now keeps lazy loading out of a first launch, which may be captured.
    check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) }.result(), during)?;
    if kernel.max_shared_bytes() > 0 {
        let bytes = kernel.max_shared_bytes() as i32;
        // SAFETY: as above.
        let set = unsafe { result::function::set_function_attribute(function, MAX_SHARED, bytes) };
        check("cuFuncSetAttribute", set, during)?;
    }
    Ok(function)
}
