// SPDX-License-Identifier: Apache-2.0
//! The kernels of this build: one table, which each family continues with its own rows.

use super::driver::{Function, Module};
use crate::error::Result;
use std::collections::HashMap;

/// What kernels take, as their headers have it: `rust/bindings/` says how it is made.
#[allow(missing_docs, dead_code, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod params {
    include!("../bindings/kernel_params.rs");
}

/// A fat binary that `build.rs` made.
#[derive(Debug)]
pub struct Image {
    /// Its source under `kernels/`, without `.cu`.
    pub name: &'static str,
    /// What the driver loads.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Threads of a block of the row-wise kernels.
pub const THREADS: u32 = params::BLOCK_THREADS;

/// When a kernel may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// When the kernel before it has ended.
    AfterPrevious,
    /// As [`Start::AfterPrevious`], with all of its blocks at once: they wait for each other.
    Together,
    /// While the kernel before it ends: it waits by itself (`kernels/common/overlap.cuh`).
    Overlapping,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name in the module.
    pub name: &'static str,
    /// Its source under `kernels/`, without `.cu`.
    pub module: &'static str,
    /// Threads of a block; 0: the launch says.
    pub threads: u32,
    /// Dynamic shared memory that it may be launched with.
    pub shared_bytes: u32,
    /// When it may start.
    pub start: Start,
}

/// A row-wise kernel without dynamic shared memory, that overlaps what came before it.
pub const ROW_WISE: Row = Row { name: "", module: "", threads: THREADS, shared_bytes: 0, start: Start::Overlapping };

/// A kernel to launch: its row, and the place of that row in the table of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    row: &'static Row,
    table: u16,
    index: u16,
}

impl Kernel {
    /// Row `index` of `rows`, which are table `table`: 0 is [`NEUTRAL`], 1 and on are those of `families::ALL`.
    pub const fn of(rows: &'static [Row], table: usize, index: usize) -> Self {
        Kernel { row: &rows[index], table: table as u16, index: index as u16 }
    }

    /// What the table says of it.
    pub fn row(self) -> &'static Row {
        self.row
    }

    /// Its table, and its row there.
    pub fn place(self) -> (usize, usize) {
        (self.table as usize, self.index as usize)
    }
}

/// Define a table of kernels, and a constant for each of its rows: `CONSTANT = "name" of "module", what differs from ROW_WISE;`
macro_rules! kernel_table {
    ($(#[$doc:meta])* $rows:ident = $table:expr;
     $($kernel:ident = $name:literal of $module:literal $(, $field:ident: $value:expr)*;)*) => {
        $(#[$doc])*
        #[allow(clippy::needless_update)] // where a row differs in every field
        pub static $rows: &[$crate::cuda::kernels::Row] = &[
            $($crate::cuda::kernels::Row {
                name: $name,
                module: $module,
                $($field: $value,)*
                ..$crate::cuda::kernels::ROW_WISE
            },)*
        ];
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Place { $($kernel,)* }
        $(
            #[doc = concat!("`", $name, "` of `kernels/", $module, ".cu`")]
            pub const $kernel: $crate::cuda::kernels::Kernel =
                $crate::cuda::kernels::Kernel::of($rows, $table, Place::$kernel as usize);
        )*
    };
}
pub(super) use kernel_table;

/// Shared memory that routing may ask for, where a GPU has it: counters of up to this many bytes.
pub const ROUTE_SHARED_BYTES: u32 = 160 * 1024;

use Start::AfterPrevious;
kernel_table! {
    /// What runs on every GPU, for every family.
    NEUTRAL = 0;
    ROUTE_SMALL = "route_small" of "route/route", threads: 0, shared_bytes: ROUTE_SHARED_BYTES, start: AfterPrevious;
    ROUTE_CLUSTER = "route_cluster" of "route/route", threads: 0, shared_bytes: ROUTE_SHARED_BYTES, start: AfterPrevious;
    ROUTE_COUNT = "route_count" of "route/route", threads: 0, shared_bytes: ROUTE_SHARED_BYTES, start: AfterPrevious;
    ROUTE_SCAN = "route_scan" of "route/route", threads: params::ROUTE_SCAN_THREADS;
    ROUTE_SCATTER = "route_scatter" of "route/route", threads: 0, shared_bytes: ROUTE_SHARED_BYTES;
    QUANTIZE_ROWS = "quantize_rows" of "quantize/quantize";
    QUANTIZE_ROWS_DECODED = "quantize_rows_decoded" of "quantize/quantize";
    QUANTIZE_ROWS_IN_LINES = "quantize_rows_in_lines" of "quantize/quantize";
    AMAX_ROWS = "amax_rows" of "calibrate/amax";
    COMBINE = "combine" of "combine/combine";
    COMBINE_SHARED = "combine_shared" of "combine/combine";
    CHECK_SCALES = "check_scales" of "prepare/check", start: AfterPrevious;
    COMPARE_VALUES = "compare_values" of "prepare/check", start: AfterPrevious;
    PREPARE_ALPHAS = "prepare_alphas" of "prepare/alphas", start: AfterPrevious;
    PREPARE_BIASES = "prepare_biases" of "prepare/alphas", start: AfterPrevious;
    PREPARE_ROW_ALPHAS = "prepare_row_alphas" of "prepare/alphas", start: AfterPrevious;
}

/// Every kernel of one device, loaded and sized, so that no launch loads anything. By table, then by row; the tables of
/// families that do not run there are empty.
#[derive(Debug)]
pub struct Functions(Vec<Vec<Function>>);

impl Functions {
    /// Load the rows of each table into the current context, of a GPU whose blocks may ask for so much shared memory: a row says
    /// what its kernel may use, and whoever launches it asks the device.
    pub fn load(tables: &[&'static [Row]], most_shared_bytes: u32) -> Result<Self> {
        let mut modules = HashMap::new();
        let mut load = |row: &Row| {
            let module = match modules.get(row.module) {
                Some(module) => *module,
                None => *modules.entry(row.module).or_insert(Module::load(row.module, image(row.module))?),
            };
            module.function(row.name, row.shared_bytes, most_shared_bytes)
        };
        Ok(Functions(tables.iter().map(|rows| rows.iter().map(&mut load).collect()).collect::<Result<_>>()?))
    }

    /// Clusters of two blocks that run at once, of every kernel whose blocks all have to.
    pub fn pairs_at_once(&self, tables: &[&'static [Row]], during: &str) -> Result<Option<u32>> {
        let functions = tables.iter().zip(&self.0).flat_map(|(rows, functions)| rows.iter().zip(functions));
        let pairs = functions
            .filter(|(row, _)| row.start == Start::Together)
            .map(|(row, function)| function.pairs_at_once(row.threads, row.shared_bytes, during));
        Ok(pairs.collect::<Result<Vec<_>>>()?.into_iter().min())
    }

    /// The handle of a kernel.
    pub fn get(&self, kernel: Kernel) -> Function {
        let (table, index) = kernel.place();
        self.0[table][index]
    }
}

/// A module's fat binary. That each row's module was built is tested (`families.rs`).
fn image(name: &str) -> &'static [u8] {
    IMAGES.iter().find(|image| image.name == name).map_or(&[], |image| image.bytes)
}
