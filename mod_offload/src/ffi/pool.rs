//! A Rust value owned by an APR pool, given back by Drop.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use super::guard::guard;
use super::sys;

/// A pool that httpd lent for a call; what is put into it lives until httpd clears it.
#[derive(Clone, Copy)]
pub(crate) struct Pool(NonNull<sys::apr_pool_t>);

impl Pool {
    /// Borrows a pool.
    ///
    /// # Safety
    /// `raw` is a live pool which no other thread uses, for as long as the borrow is used.
    pub(super) unsafe fn borrow(raw: *mut sys::apr_pool_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    pub(super) fn raw(self) -> *mut sys::apr_pool_t {
        self.0.as_ptr()
    }

    /// Gives a value to the pool: it is dropped when the pool is cleared.
    pub(super) fn own<T>(self, value: T) -> *mut T {
        // What apr_palloc promises (APR_ALIGN_DEFAULT in apr_general.h).
        const { assert!(align_of::<T>() <= 8) };
        // SAFETY: the pool is live (`borrow`); APR ends the process rather than return NULL (httpd gives
        // its pools an abort function).
        let place = unsafe { sys::apr_palloc(self.raw(), size_of::<T>()) }.cast::<T>();
        // SAFETY: the memory is ours alone, and has the size and the alignment of a T.
        unsafe { place.write(value) };
        // SAFETY: the pool is live (`borrow`); APR runs a clean-up exactly once, before it takes the memory
        // back. apr_pool_cleanup_null is APR's own no-op for exec.
        unsafe {
            sys::apr_pool_cleanup_register(
                self.raw(),
                place.cast(),
                Some(give_back::<T>),
                Some(sys::apr_pool_cleanup_null),
            );
        }
        place
    }

    /// Has a function called before anything of the pool is given back, the pools in it included.
    pub(super) fn before_its_end(self, call: fn()) {
        let place: *const fn() = self.own(call);
        // SAFETY: the pool is live (`borrow`); the function lies in it, and is there until after the call.
        unsafe {
            sys::apr_pool_pre_cleanup_register(self.raw(), place.cast(), Some(call_back));
        }
    }

    /// The parts, one after the other, in the pool, with a NUL at the end. C sees them up to the first
    /// NUL in them, of which there should be none.
    pub(super) fn string(self, parts: &[&str]) -> *const c_char {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        // SAFETY: the pool is live (`borrow`); APR ends the process rather than return NULL (httpd gives
        // its pools an abort function).
        let memory = unsafe { sys::apr_palloc(self.raw(), length + 1) };
        // SAFETY: the memory is ours alone, and has room for the parts and the NUL.
        let mut room =
            unsafe { slice::from_raw_parts_mut(memory.cast::<MaybeUninit<u8>>(), length + 1) };
        for part in parts.iter().map(|part| part.as_bytes()).chain([b"\0".as_slice()]) {
            let (place, rest) = room.split_at_mut(part.len());
            place.write_copy_of_slice(part);
            room = rest;
        }
        memory.cast_const().cast()
    }

    /// What `keep` put under this name.
    pub(super) fn kept(self, name: &'static CStr) -> Option<NonNull<c_void>> {
        let mut found: *mut c_void = ptr::null_mut();
        // SAFETY: the pool is live (`borrow`), the name ends with a NUL, `found` is writable.
        unsafe { sys::apr_pool_userdata_get(&raw mut found, name.as_ptr(), self.raw()) };
        NonNull::new(found)
    }

    /// Remembers an address in the pool, to be found again by its name. The pool does not own it.
    pub(super) fn keep(self, name: &'static CStr, address: NonNull<c_void>) {
        // SAFETY: the pool is live (`borrow`), the name is static and as long as the module is loaded,
        // that is, to the end of the process (-z nodelete).
        unsafe { sys::apr_pool_userdata_setn(address.as_ptr(), name.as_ptr(), None, self.raw()) };
    }
}

unsafe extern "C" fn give_back<T>(value: *mut c_void) -> sys::apr_status_t {
    let success = sys::APR_SUCCESS.cast_signed();
    guard(
        success,
        |_| {},
        || {
            // SAFETY: `own` registered this clean-up with a T that it wrote there, and APR runs a clean-up
            // once.
            unsafe { value.cast::<T>().drop_in_place() };
            success
        },
    )
}

unsafe extern "C" fn call_back(place: *mut c_void) -> sys::apr_status_t {
    let success = sys::APR_SUCCESS.cast_signed();
    guard(
        success,
        |_| {},
        || {
            // SAFETY: `before_its_end` registered this with a function that lies in the pool.
            let call = unsafe { place.cast::<fn()>().read() };
            call();
            success
        },
    )
}
