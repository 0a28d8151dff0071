// SPDX-License-Identifier: Apache-2.0
//! What every exported function that may fail looks like.

/// Functions of the header: each runs its body in a [`guard`](super::guard) and returns the status. Inside, everything
/// that relies on the caller may be called, because the caller of an export keeps what `nvfp4_moe.h` asks of it.
macro_rules! exports {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, as `nvfp4_moe.h` describes it.")]
            ///
            /// # Safety
            /// The header's rules: each pointer is NULL or valid for what it says, handles are alive.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> i32 {
                // SAFETY: helpers ask for what the header asks of its caller, which is this function's contract.
                $crate::abi::guard(|| unsafe { $body })
            }
        )*
    };
}
pub(super) use exports;
