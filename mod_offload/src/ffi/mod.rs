//! The fence: the only unsafe code of the module. It knows httpd and no policy.
//!
//! Its rules:
//!
//! * Every `extern "C"` body is one [`guard`](guard::guard): trampoline = guard + borrow + call.
//! * What httpd hands us is borrowed for the call ([`request::Request`], [`server::Server`]); pointers
//!   are never NULL unless httpd's header says so, and then they are an `Option` here.
//! * What Rust gives to httpd is owned by a pool and leaves by Drop ([`pool::Pool::own`]).
//! * Bytes from httpd are bytes; they become text only where text is needed.
//! * Each SAFETY comment names who promises: httpd, our registration, or the pool.

pub(crate) mod commands;
pub(crate) mod expression;
pub(crate) mod filter;
pub(crate) mod guard;
mod hold;
pub(crate) mod log;
pub(crate) mod module;
pub(crate) mod pool;
pub(crate) mod request;
pub(crate) mod server;
pub(crate) mod shared;
pub(crate) mod socket;

/// httpd and APR as bindgen found them on the machine that built this.
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::nursery,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
pub(crate) mod sys {
    include!(concat!(env!("OUT_DIR"), "/httpd.rs"));
}

use std::ffi::{CStr, c_char};

/// The bytes of a C string, or `None` for NULL.
///
/// # Safety
/// `text` is NULL or points to a string with a NUL at its end that stays unchanged for `'a`.
unsafe fn bytes<'a>(text: *const c_char) -> Option<&'a [u8]> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller promises a string that ends and lives for 'a.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}
