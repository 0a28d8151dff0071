// SPDX-License-Identifier: Apache-2.0
//! Handles: what the opaque pointers of the header point to.

use super::checks::{not_null_mut, null_error};
use crate::error::{Error, Result};

/// An opaque type of the header, and what is behind it.
pub(crate) trait Opaque {
    /// What its handle owns.
    type Inside;
    /// The name of arguments of this type.
    const NAME: &'static str;
    /// What its handles begin with; unlike any other kind's, and unlikely in memory that is none.
    const MARK: u64;

    /// May it be used in this process? What a GPU has does not follow into a forked child.
    fn check_process(_: &Self::Inside) -> Result<()> {
        Ok(())
    }

    /// Give back what can fail to be given back, before it is dropped.
    fn close(_: &mut Self::Inside) -> Result<()> {
        Ok(())
    }
}

/// What a handle's mark becomes when it is destroyed.
const DESTROYED: u64 = u64::from_le_bytes(*b"nvfp4end");

/// The mark tells a destroyed handle, one of another kind and a stray pointer from a live handle, most of the time:
/// memory of a destroyed one may by then be anything, even another live handle.
#[repr(C)]
struct Handle<T> {
    mark: u64,
    inside: T,
}

/// Hand out what `make` makes; `out` is written only if it succeeds.
///
/// # Safety
/// `out` must be NULL or writable.
pub(crate) unsafe fn create<H: Opaque>(out: *mut *mut H, make: impl FnOnce() -> Result<H::Inside>) -> Result<()> {
    // SAFETY: NULL or writable, and the caller's own while the call lasts.
    let out = unsafe { not_null_mut("out", out) }?;
    *out = Box::into_raw(Box::new(Handle { mark: H::MARK, inside: make()? })).cast();
    Ok(())
}

/// What a `const` handle owns.
///
/// # Safety
/// `handle` must be NULL or have come from [`create`], and stay alive and without an exclusive user for `'a`. (What
/// breaks this and can be seen is refused, but that is no promise.)
pub(crate) unsafe fn shared<'a, H: Opaque>(handle: *const H) -> Result<&'a H::Inside> {
    // SAFETY: the same contract; marked H, so that create::<H> made it.
    let inside = unsafe { &(*live(handle)?).inside };
    H::check_process(inside)?;
    Ok(inside)
}

/// What a handle owns, to change it.
///
/// # Safety
/// As [`shared`], with no other user at all.
pub(crate) unsafe fn exclusive<'a, H: Opaque>(handle: *mut H) -> Result<&'a mut H::Inside> {
    // SAFETY: as in shared, and nobody else uses it.
    let inside = unsafe { &mut (*live(handle)?.cast_mut()).inside };
    H::check_process(inside)?;
    Ok(inside)
}

/// Drop a handle and what it owns; NULL is none. One that is not alive, or of another process, is left as it is: better a
/// leak than memory freed twice.
///
/// # Safety
/// As [`exclusive`], and nobody may use it afterwards.
pub(crate) unsafe fn destroy<H: Opaque>(handle: *mut H) -> Result<()> {
    if handle.is_null() {
        return Ok(());
    }
    // SAFETY: create's Box::into_raw made it, which the mark confirms.
    unsafe {
        H::check_process(&(*live(handle)?).inside)?;
        H::close(&mut Box::from_raw(retire(handle)?).inside)
    }
}

/// Mark a live handle as destroyed.
///
/// # Safety
/// As [`destroy`].
unsafe fn retire<H: Opaque>(handle: *mut H) -> Result<*mut Handle<H::Inside>> {
    // SAFETY: the same contract. Volatile: a plain store just before freeing is one that the compiler may leave out.
    unsafe {
        let handle = live(handle)?.cast_mut();
        (&raw mut (*handle).mark).write_volatile(DESTROYED);
        Ok(handle)
    }
}

/// The one place where a handle of C is looked at.
///
/// # Safety
/// As [`shared`].
unsafe fn live<H: Opaque>(handle: *const H) -> Result<*const Handle<H::Inside>> {
    if handle.is_null() {
        return Err(null_error(H::NAME));
    }
    let inside = handle.cast::<Handle<H::Inside>>();
    // SAFETY: a handle begins with its mark, whatever its kind.
    if inside.is_aligned() && unsafe { inside.cast::<u64>().read() } == H::MARK {
        return Ok(inside);
    }
    let name = H::NAME;
    let rule = format!("it must be a live handle of kind {name}, and is destroyed or something else");
    let remedy = "Pass what its create or open gave, before its destroy.";
    Err(Error::argument(name, format!("{handle:p}"), rule, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Red;
    struct Blue;

    impl Opaque for Red {
        type Inside = String;
        const NAME: &'static str = "red";
        const MARK: u64 = 1;
    }
    impl Opaque for Blue {
        type Inside = String;
        const NAME: &'static str = "blue";
        const MARK: u64 = 2;
    }

    fn red() -> *mut Red {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a local.
        unsafe { create(&mut handle, || Ok("inside".to_owned())) }.unwrap();
        handle
    }

    #[test]
    fn a_live_handle_of_its_kind_opens_and_no_other() {
        let handle = red();
        // SAFETY: alive until destroyed, and used by nobody else.
        unsafe {
            exclusive(handle).unwrap().push('!');
            assert_eq!(shared(handle.cast_const()).unwrap(), "inside!");
            for error in [shared(handle.cast::<Blue>()).unwrap_err(), destroy(handle.cast::<Blue>()).unwrap_err()] {
                let text = error.to_string();
                assert!(text.contains("; it must be a live handle of kind blue, and is destroyed"), "{text}");
            }
            assert_eq!(shared(handle).unwrap(), "inside!", "what is no blue was not destroyed as one");
            assert!(shared(handle.wrapping_byte_add(1)).unwrap_err().to_string().starts_with("red is 0x"));
            destroy(handle).unwrap();
            destroy::<Red>(std::ptr::null_mut()).unwrap();
            assert!(shared::<Red>(std::ptr::null()).unwrap_err().to_string().starts_with("red is NULL; "));
        }
    }

    /// destroy is retire and a drop; between the two the memory can still be looked at.
    #[test]
    fn a_destroyed_handle_is_refused() {
        let handle = red();
        // SAFETY: retired, not yet freed.
        unsafe {
            let memory = retire(handle).unwrap();
            assert!(shared(handle).unwrap_err().to_string().contains("it must be a live handle of kind red"));
            assert!(exclusive(handle).is_err());
            assert!(destroy(handle).is_err(), "freed a second time");
            drop(Box::from_raw(memory));
        }
    }

    #[test]
    fn a_failure_writes_no_handle() {
        let untouched = std::ptr::without_provenance_mut::<Red>(16);
        let mut handle = untouched;
        // SAFETY: a local, or NULL.
        unsafe {
            create(&mut handle, || Err(Error::Internal(String::new()))).unwrap_err();
            create::<Red>(std::ptr::null_mut(), || Ok(String::new())).unwrap_err();
        }
        assert_eq!(handle, untouched);
    }
}
