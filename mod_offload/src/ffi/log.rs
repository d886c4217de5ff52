//! Lines in httpd's error log. User text is an argument, never a format; httpd escapes it.

use std::ffi::{CString, c_int};

use super::sys;

/// How urgent a line is; httpd writes Notice and above whatever LogLevel says, but to syslog.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Level {
    /// The module is broken or was misled.
    Error,
    /// Something will not work as it was configured.
    Warning,
    /// What the administrator asked to be told.
    Notice,
    /// What is of interest when something is looked for.
    Info,
}

impl Level {
    pub(super) fn number(self) -> c_int {
        let number = match self {
            Self::Error => sys::APLOG_ERR,
            Self::Warning => sys::APLOG_WARNING,
            Self::Notice => sys::APLOG_NOTICE,
            Self::Info => sys::APLOG_INFO,
        };
        // The levels are 0 to 15 (http_log.h).
        c_int::try_from(number).unwrap_or(0)
    }
}

/// A line as C wants it: what follows a NUL, which no line should have, is left out.
pub(super) fn c_line(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}
