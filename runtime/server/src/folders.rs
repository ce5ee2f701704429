//! Folders of jobs that go.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

/// Removes the folder of a job; what cannot be removed now goes when the next server starts.
pub fn clear(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(target: "vldm::server", %error, folder = %folder.display(), "cannot remove a folder");
    }
}

/// Removes folders in `videos` that belong to no job.
///
/// # Errors
/// What the system says.
pub fn sweep(videos: &Path, ids: &HashMap<String, u64>) -> io::Result<()> {
    for entry in fs::read_dir(videos)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| ids.contains_key(name)) {
            clear(&entry.path());
        }
    }
    Ok(())
}
