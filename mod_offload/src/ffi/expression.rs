//! `"if=EXPR"`: httpd's expressions, compiled when the configuration is read.

use std::ffi::{CString, c_int};
use std::ptr::{self, NonNull};

use offload_core::setting::Condition;

use super::request::Request;
use super::{bytes, sys};

/// A compiled expression. It lives in the pool of the configuration that it stands in.
struct Expression(NonNull<sys::ap_expr_info_t>);

// SAFETY: httpd itself evaluates one compiled expression from many threads (<If>, Require expr): it is
// not changed after it was compiled (ap_expr.h).
unsafe impl Send for Expression {}
// SAFETY: as above.
unsafe impl Sync for Expression {}

/// Compiles an expression.
///
/// # Safety
/// `parms` is what httpd passed to a directive's setter that is still running.
pub(super) unsafe fn compile(
    parms: *mut sys::cmd_parms,
    text: &str,
    in_htaccess: bool,
) -> Result<Condition, String> {
    let source = CString::new(text).map_err(|_| format!("'if={text}' has a NUL byte"))?;
    let mut error = ptr::null();
    // The redirect may not be stored by anybody, so it need not say what it varies by. Whoever may write
    // a .htaccess file gets no functions that read the server's files.
    let flags =
        sys::AP_EXPR_FLAG_DONT_VARY | if in_htaccess { sys::AP_EXPR_FLAG_RESTRICTED } else { 0 };
    let index = super::module::offload_module.index();
    // SAFETY: the caller promises `parms`; httpd copies what it keeps of `source` into parms->pool.
    let compiled = unsafe {
        sys::ap_expr_parse_cmd_mi(parms, source.as_ptr(), flags, &raw mut error, None, index)
    };
    // SAFETY: httpd sets `error` to NULL or to a message in the pool, which outlives this call.
    match (unsafe { bytes(error) }, NonNull::new(compiled)) {
        (None, Some(compiled)) => Ok(Condition::new(Expression(compiled))),
        (why, _) => Err(format!(
            "'if={text}' is not an expression ({}); use what httpd's <If> takes",
            String::from_utf8_lossy(why.unwrap_or(b"unknown"))
        )),
    }
}

/// Whether a condition holds for the request.
///
/// # Errors
/// httpd's message, when the expression failed.
pub(crate) fn holds(condition: &Condition, request: Request<'_>) -> Result<bool, String> {
    let Some(Expression(compiled)) = condition.compiled::<Expression>() else { return Ok(false) };
    let mut error = ptr::null();
    // SAFETY: the expression lives in the pool of the configuration that the request holds; the request
    // is live (`Request::borrow`).
    let answer: c_int =
        unsafe { sys::ap_expr_exec(request.raw(), compiled.as_ptr(), &raw mut error) };
    // SAFETY: httpd sets `error` to NULL or to a message in the request's pool.
    match unsafe { bytes(error) } {
        None => Ok(answer > 0),
        Some(why) => Err(String::from_utf8_lossy(why).into_owned()),
    }
}
