//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

/// The folder with `libmod_offload.so` and `offload-cgi`: `$OFFLOAD_ARTIFACTS`, or `target/release`.
#[derive(Clone, Debug)]
pub struct Artifacts(PathBuf);

impl Default for Artifacts {
    fn default() -> Self {
        Self(
            env::var_os("OFFLOAD_ARTIFACTS")
                .map_or_else(|| workspace().join("target/release"), PathBuf::from),
        )
    }
}

impl Artifacts {
    /// The module as it is shipped.
    pub fn module(&self) -> PathBuf {
        present(self.0.join("libmod_offload.so"))
    }

    /// The module with the feature `fault-injection`, which panics when a request asks for it.
    pub fn faulty_module(&self) -> PathBuf {
        present(self.0.join("../faulty/mod_offload.so"))
    }

    /// The folder that cargo built them in.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The program of the offload host.
    pub fn cgi(&self) -> PathBuf {
        present(self.0.join("offload-cgi"))
    }
}

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn present(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `make build` first", path.display());
    path
}
