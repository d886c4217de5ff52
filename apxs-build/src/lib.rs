//! Builds a crate against the installed httpd: asks apxs and apr-1-config where the headers are,
//! compiles the C shim (cc) and writes the bindings (bindgen).
//!
//! For a build script:
//!
//! ```no_run
//! let built = apxs_build::Httpd::ask().and_then(|httpd| {
//!     httpd.compile_shim("src/ffi/shim.c")?;
//!     httpd.write_bindings("src/ffi/shim.h", &["ap_hook_handler"], "bindings.rs".as_ref())
//! });
//! apxs_build::finish(built);
//! ```
//!
//! The environment variables `APXS` and `APR_CONFIG` name other programs than the ones on the PATH.
//! Every failure is one sentence that names the Debian package to install.

mod error;

use std::env;
use std::ffi::OsString;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use error::Error;

/// What apxs and apr-1-config say about the installed httpd.
pub struct Httpd {
    includes: Vec<PathBuf>,
    flags: Vec<String>,
}

impl Httpd {
    /// Asks apxs and apr-1-config.
    ///
    /// # Errors
    /// One of them is missing or failed, or `httpd.h` is not where they say.
    pub fn ask() -> Result<Self, Error> {
        println!("cargo::rerun-if-env-changed=APXS");
        println!("cargo::rerun-if-env-changed=APR_CONFIG");
        let apxs = program("APXS", &["apxs", "apxs2"]).ok_or(Error::NoApxs)?;
        let apr_config = program("APR_CONFIG", &["apr-1-config"]).ok_or(Error::NoAprConfig)?;

        let include = PathBuf::from(output(&apxs, &["-q", "INCLUDEDIR"])?);
        let mut includes = vec![include.clone()];
        let mut flags = Vec::new();
        for word in output(&apr_config, &["--includes", "--cppflags"])?.split_whitespace() {
            match word.strip_prefix("-I") {
                Some(folder) => includes.push(PathBuf::from(folder)),
                None => flags.push(word.to_owned()),
            }
        }
        for header in ["httpd.h", "apr.h", "apr_buckets.h"] {
            if !includes.iter().any(|folder| folder.join(header).is_file()) {
                return Err(Error::NoHeader { header, folder: include });
            }
        }
        Ok(Self { includes, flags })
    }

    /// Compiles a C file into the crate.
    ///
    /// # Errors
    /// There is no C compiler, or it refuses the file.
    pub fn compile_shim(&self, source: &str) -> Result<(), Error> {
        println!("cargo::rerun-if-changed={source}");
        let name = Path::new(source).file_stem().unwrap_or_default().to_string_lossy();
        let mut build = cc::Build::new();
        build.file(source).includes(&self.includes).warnings(true).extra_warnings(true);
        // httpd's own headers have unused parameters in inline functions and hook macros.
        build.flag_if_supported("-Wno-unused-parameter");
        self.flags.iter().for_each(|flag| {
            build.flag(flag);
        });
        build.try_compile(&name).map_err(|error| Error::Compiler(error.to_string()))
    }

    /// Writes the bindings to what a header includes, for the allowed items only.
    ///
    /// # Errors
    /// libclang is missing, it refuses the header, or the file cannot be written.
    pub fn write_bindings(&self, header: &str, allowed: &[&str], to: &Path) -> Result<(), Error> {
        println!("cargo::rerun-if-changed={header}");
        clang()?;
        let mut builder = bindgen::Builder::default()
            .header(header)
            .clang_args(self.includes.iter().map(|folder| format!("-I{}", folder.display())))
            .clang_args(&self.flags)
            // C's own types are libc's, so that a pointer fits both httpd and the system's calls.
            .use_core()
            .ctypes_prefix("::libc")
            .generate_comments(false)
            .layout_tests(false)
            .derive_debug(false)
            .merge_extern_blocks(true)
            .rust_edition(bindgen::RustEdition::Edition2024);
        for item in allowed {
            builder = builder.allowlist_item(item);
        }
        let bindings = builder.generate().map_err(|error| Error::Header(error.to_string()))?;
        bindings
            .write_to_file(to)
            .map_err(|error| Error::Write { file: to.to_owned(), why: error.to_string() })
    }
}

/// Ends a build script: quietly when it went well, else with one sentence on stderr and status 1.
pub fn finish(built: Result<(), Error>) {
    if let Err(error) = built {
        // cargo shows a build script's stderr only when the script fails; a panic would add noise.
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// The program that an environment variable names, or the first of `names` that is on the PATH.
fn program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    let named = env::var_os(variable).filter(|value| !value.is_empty());
    let names: Vec<OsString> = match named {
        Some(name) => vec![name],
        None => names.iter().map(OsString::from).collect(),
    };
    // apxs lives in an sbin folder on some systems, which is not on every user's PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .collect();
    names.iter().find_map(|name| {
        if Path::new(name).components().count() > 1 {
            return Path::new(name).is_file().then(|| PathBuf::from(name));
        }
        folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file())
    })
}

fn output(program: &Path, arguments: &[&str]) -> Result<String, Error> {
    let failed = |why: String| Error::Program { program: program.to_owned(), why };
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether libclang can be loaded. bindgen panics when it cannot, with no other way to ask.
fn clang() -> Result<(), Error> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let found = panic::catch_unwind(bindgen::clang_version);
    panic::set_hook(hook);
    found.map(|_| ()).map_err(|_| Error::NoLibclang)
}
