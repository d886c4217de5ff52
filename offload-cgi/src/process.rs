//! What `ps` shows of this process.

use std::ffi::CString;

/// Gives this process a name, of which the kernel keeps 15 bytes.
pub(crate) fn name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A name is a courtesy.
        let _ = nix::sys::prctl::set_name(&name);
    }
}
