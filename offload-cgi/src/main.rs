//! The binary: everything lies in the library beside it, where tests and fuzzers reach it too.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    offload_cgi::main()
}
