//! A folder for a test's files.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::id;

/// What names of these folders begin with.
pub const PREFIX: &str = "millrace-test-";

/// A folder in the system's temporary folder, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A fresh, empty `millrace-test-<pid>-<n>`.
    pub fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("{PREFIX}{}", id::fresh()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{} is left: {error:#}", self.path.display());
        }
    }
}

/// These folders on this machine, with the process ids of their makers.
pub fn list() -> Vec<(PathBuf, u32)> {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let owner = id::owner(entry.file_name().to_str()?, PREFIX)?;
            Some((entry.path(), owner))
        })
        .collect()
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("remove {}", path.display())),
    }
}
