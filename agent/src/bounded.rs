//! Reading files that may be anything: a device, a pipe that nobody writes into, a
//! terabyte of nothing. Ends soon, takes little memory, and says what to do.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Largest policy, in bytes.
pub const MAX_POLICY: u64 = 4 << 20;
/// Largest settings file, in bytes.
pub const MAX_SETTINGS: u64 = 1 << 20;
/// Largest file of country data, in bytes.
pub const MAX_GEO: u64 = 128 << 20;
/// Longest line of records, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Reads a whole file that has at most so many bytes.
///
/// # Errors
///
/// Those of reading; it is no plain file; it has more, at first or while it is read.
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let too_large = || {
        io::Error::other(format!(
            "it has more than {max_bytes} bytes, which is the most that is read"
        ))
    };
    if file.metadata()?.len() > max_bytes {
        return Err(too_large());
    }
    let mut content = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max_bytes {
        return Err(too_large());
    }
    Ok(content)
}

/// As [`read`], for text.
///
/// # Errors
///
/// As there; it is not UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    String::from_utf8(read(path, max_bytes)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// Opens a plain file. A pipe without a writer does not keep the caller waiting.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::other(
            "it is a pipe or a device; write its content into a file first",
        ));
    }
    Ok(file)
}

/// Reads a line into `line`, without its end. `Ok(None)` at the end of the file;
/// `Ok(Some(false))` for a line that is longer than [`MAX_LINE`], of which the beginning
/// is kept.
///
/// # Errors
///
/// Those of reading.
pub fn read_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let (mut is_whole, mut has_begun) = (true, false);
    loop {
        let available = match file.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            return Ok(has_begun.then_some(is_whole));
        }
        has_begun = true;
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let room = MAX_LINE - line.len();
        is_whole &= part.len() <= room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let n_used = end.map_or(available.len(), |end| end + 1);
        file.consume(n_used);
        if end.is_some() {
            return Ok(Some(is_whole));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::BufReader};

    use super::*;

    #[test]
    fn what_has_no_end_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let sparse = dir.path().join("sparse");
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        let link = dir.path().join("loop");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        for (path, reason) in [
            (Path::new("/dev/zero"), "device"),
            (&fifo, "pipe"),
            (&sparse, "more than 1048576 bytes"),
            (dir.path(), "directory"),
            (&link, "symbolic links"),
            // It says that it has no bytes, and has.
            (Path::new("/proc/kallsyms"), "more than 1048576 bytes"),
        ] {
            let error = read(path, MAX_SETTINGS).unwrap_err().to_string();
            assert!(error.contains(reason), "{}: {error}", path.display());
        }
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4).unwrap(), "text");
        assert!(read_text(&file, 3).is_err());
    }

    #[test]
    fn a_line_takes_no_more_memory_than_one_may_have() {
        let long = vec![b'x'; 3 * MAX_LINE];
        let text = [b"one\n\n", &long[..], b"\nlast"].concat();
        let mut file = BufReader::new(&text[..]);
        let mut line = Vec::new();
        let mut read = Vec::new();
        while let Some(is_whole) = read_line(&mut file, &mut line).unwrap() {
            assert!(line.len() <= MAX_LINE && line.capacity() <= 2 * MAX_LINE);
            read.push((line.len(), is_whole));
        }
        assert_eq!(read, [(3, true), (0, true), (MAX_LINE, false), (4, true)]);
    }
}
