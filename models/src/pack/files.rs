//! The files of a package while it is being made: temporary names until all of them are whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrysalis_protocol::package::BlobSink;

/// Why the files of a package cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The name of a package ends in `.chry`.
    #[error("{0} does not end in .chry")]
    Name(PathBuf),
    /// A file is there and was not to be replaced.
    #[error("{0} is already there")]
    Exists(PathBuf),
    /// Another packer writes the same package.
    #[error("another packer is writing {0}")]
    Busy(PathBuf),
    /// The operating system could not write.
    #[error("{path} cannot be written: {error}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Files that are not yet a package. Dropped before [`Staging::commit`], they are removed.
#[derive(Debug)]
pub(super) struct Staging {
    folder: PathBuf,
    /// `NAME`.
    stem: String,
    force: bool,
    /// Temporary and final name of each file but `NAME.chry`, blobs first.
    written: Vec<(PathBuf, PathBuf)>,
    /// The blob that is being written, the last of `written`.
    blob: Option<(u32, File)>,
    /// `NAME.chry` under its temporary name, locked: there is one packer at a time.
    main: File,
    bytes: u64,
    committed: bool,
}

impl Staging {
    /// Takes the place of package `output` for this packer, and clears what a killed one left.
    pub(super) fn new(output: &Path, force: bool) -> Result<Self, FileError> {
        let stem = output
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".chry"))
            .filter(|stem| !stem.is_empty())
            .ok_or_else(|| FileError::Name(output.to_owned()))?
            .to_owned();
        let folder = match output.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let main = lock(&folder.join(temporary(&format!("{stem}.chry"))))?;
        let staging = Self {
            folder,
            stem,
            force,
            written: Vec::new(),
            blob: None,
            main,
            bytes: 0,
            committed: false,
        };
        let prefix = temporary(&format!("{}.", staging.stem));
        let prefix = prefix.trim_end_matches(TEMPORARY).to_owned();
        for path in staging.siblings(|name| {
            name.strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix(TEMPORARY))
                .is_some_and(|ending| ending == "client" || is_blob(ending))
        })? {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        match staging.final_files()?.into_iter().next() {
            Some(path) if !force => Err(FileError::Exists(path)),
            _ => Ok(staging),
        }
    }

    /// Writes `NAME.client`.
    pub(super) fn write_client_bundle(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let (path, mut file) = self.create("client")?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(&path))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes `NAME.chry` and gives every file its name, that one last. Says which files there
    /// are, `NAME.chry` first, and their bytes.
    pub(super) fn commit(mut self, main: &[u8]) -> Result<(Vec<PathBuf>, u64), FileError> {
        self.finish_blob()?;
        let main_from = self.path(&temporary(&self.name("chry")));
        let main_to = self.path(&self.name("chry"));
        self.main
            .write_all(main)
            .and_then(|()| self.main.sync_all())
            .map_err(failed(&main_from))?;
        // Between here and the last line there is no package; first of all, not an old one.
        if self.force {
            let old = self.final_files()?;
            for path in old.iter().filter(|path| **path == main_to).chain(&old) {
                remove(path)?;
            }
        }
        let mut named = Vec::new();
        let moved =
            self.written.iter().chain([&(main_from, main_to)]).try_for_each(|(from, to)| {
                rename_new(from, to)?;
                named.push(to.clone());
                Ok(())
            });
        let synced = moved.and_then(|()| {
            File::open(&self.folder)
                .and_then(|folder| folder.sync_all())
                .map_err(failed(&self.folder))
        });
        if let Err(error) = synced {
            for path in named.iter().rev() {
                remove(path)?;
            }
            return Err(error);
        }
        self.committed = true;
        named.rotate_right(1);
        Ok((named, self.bytes + main.len() as u64))
    }

    fn name(&self, ending: &str) -> String {
        format!("{}.{ending}", self.stem)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Creates the file that will be `NAME.ending`.
    fn create(&mut self, ending: &str) -> Result<(PathBuf, File), FileError> {
        let name = self.name(ending);
        let (from, to) = (self.path(&temporary(&name)), self.path(&name));
        let file = File::create(&from).map_err(failed(&from))?;
        self.written.push((from.clone(), to));
        Ok((from, file))
    }

    fn finish_blob(&mut self) -> Result<(), FileError> {
        let Some((blob, file)) = self.blob.take() else {
            return Ok(());
        };
        file.sync_all().map_err(failed(&self.path(&temporary(&self.name(&blob_ending(blob))))))
    }

    /// Files under the final names of this package.
    fn final_files(&self) -> Result<Vec<PathBuf>, FileError> {
        self.siblings(|name| {
            let ending = name.strip_prefix(&self.stem).and_then(|rest| rest.strip_prefix('.'));
            ending.is_some_and(|ending| matches!(ending, "chry" | "client") || is_blob(ending))
        })
    }

    /// Files of the folder, by name.
    fn siblings(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, FileError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed(&self.folder))? {
            let entry = entry.map_err(failed(&self.folder))?;
            if entry.file_name().to_str().is_some_and(&wanted) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

impl BlobSink for &mut Staging {
    fn append(&mut self, blob: u32, bytes: &[u8]) -> io::Result<()> {
        if self.blob.as_ref().is_none_or(|(current, _)| *current != blob) {
            self.finish_blob().map_err(io::Error::other)?;
            let (_, file) = self.create(&blob_ending(blob)).map_err(io::Error::other)?;
            self.blob = Some((blob, file));
        }
        if let Some((_, file)) = &mut self.blob {
            file.write_all(bytes)?;
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit these names may be another packer's.
        if self.committed {
            return;
        }
        let main = self.path(&temporary(&self.name("chry")));
        for path in self.written.iter().map(|(from, _)| from).chain([&main]) {
            // What cannot be removed, the next packer will.
            drop(fs::remove_file(path));
        }
    }
}

/// Creates and locks a file, emptied. A packer that came second finds it locked, or no longer
/// under its name.
fn lock(path: &Path) -> Result<File, FileError> {
    let options = OpenOptions::new().write(true).create(true).truncate(false).clone();
    let file = options.open(path).map_err(failed(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FileError::Busy(path.to_owned())),
        Err(TryLockError::Error(error)) => return Err(failed(path)(error)),
    }
    let ours = file.metadata().map_err(failed(path))?;
    match fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {}
        _ => return Err(FileError::Busy(path.to_owned())),
    }
    file.set_len(0).map_err(failed(path))?;
    Ok(file)
}

/// Renames, but never onto a file that is there.
fn rename_new(from: &Path, to: &Path) -> Result<(), FileError> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(FileError::Exists(to.to_owned()));
    }
    fs::rename(from, to).map_err(failed(to))
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError::Write { path: path.clone(), error }
}

/// The name of a file that is not yet whole.
fn temporary(name: &str) -> String {
    format!(".{name}{TEMPORARY}")
}

fn blob_ending(blob: u32) -> String {
    format!("b{blob:04}")
}

fn is_blob(ending: &str) -> bool {
    ending
        .strip_prefix('b')
        .is_some_and(|number| number.len() >= 4 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

const TEMPORARY: &str = ".partial";
