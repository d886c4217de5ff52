//! What can be missing, each with the package that brings it.

use std::fmt;
use std::path::PathBuf;

/// Why nothing could be built: a sentence that names what to install.
#[derive(Debug)]
pub enum Error {
    /// There is no apxs.
    NoApxs,
    /// There is no apr-1-config.
    NoAprConfig,
    /// apxs or apr-1-config failed.
    Program {
        /// Which.
        program: PathBuf,
        /// What it printed.
        why: String,
    },
    /// A header is not where apxs says.
    NoHeader {
        /// Which.
        header: &'static str,
        /// Where httpd's headers should be.
        folder: PathBuf,
    },
    /// libclang, which bindgen reads headers with, cannot be loaded.
    NoLibclang,
    /// The C compiler is missing or refused the shim.
    Compiler(String),
    /// libclang refused the headers.
    Header(String),
    /// The bindings could not be written.
    Write {
        /// Where to.
        file: PathBuf,
        /// Why not.
        why: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoApxs => f.write_str(
                "apxs was not found; install the package apache2-dev, or set APXS to its path",
            ),
            Self::NoAprConfig => f.write_str(
                "apr-1-config was not found; install the package libapr1-dev, or set APR_CONFIG to its path",
            ),
            Self::Program { program, why } => write!(
                f,
                "{} failed ({why}); install the package apache2-dev, or set APXS to another apxs",
                program.display()
            ),
            Self::NoHeader { header, folder } => write!(
                f,
                "the header {header} was not found in {}; install the package apache2-dev",
                folder.display()
            ),
            Self::NoLibclang => f.write_str(
                "libclang was not found; install the package libclang-dev, or set LIBCLANG_PATH to its folder",
            ),
            Self::Compiler(why) => write!(
                f,
                "the C shim was not compiled ({why}); install the package build-essential if there is no compiler"
            ),
            Self::Header(why) => write!(
                f,
                "libclang could not read httpd's headers ({why}); install the packages libclang-dev and libc6-dev"
            ),
            Self::Write { file, why } => write!(f, "{} could not be written: {why}", file.display()),
        }
    }
}

impl std::error::Error for Error {}
