//! Reading files that may be anything: a device, a pipe that nobody writes into, a
//! terabyte of nothing. Ends soon, takes little memory, and says what to do.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
    thread,
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Largest policy, in bytes.
pub const MAX_POLICY: u64 = 4 << 20;
/// Largest settings file, in bytes.
pub const MAX_SETTINGS: u64 = 1 << 20;
/// Largest file of country data, in bytes.
pub const MAX_GEO: u64 = 128 << 20;
/// Most address ranges in a file of country data; as MMDB, most of countries and most of systems.
pub const MAX_RANGES: usize = 2_000_000;
/// Longest line of records, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// Most bytes without an end of line in a file of records. A longer line than [`MAX_LINE`] is a
/// fault of this line, and beyond this the file has no lines.
pub const MAX_STRETCH: usize = 64 << 20;
/// Most lines of a file of records, or of a log, that cannot be read, and most bytes of them.
pub const MAX_UNREADABLE: (u64, u64) = (100_000, 64 << 20);
/// Largest key or checkpoint, in bytes.
pub const MAX_KEY: u64 = 64 << 10;

/// Time that somebody has to open the other end of a pipe, and looks for that.
const GRACE: (Duration, u32) = (Duration::from_millis(50), 20);

/// Reads a whole file that has at most so many bytes.
///
/// # Errors
///
/// Those of reading; it is no plain file; it has more, at first or while it is read.
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(
            "it is a pipe or a device; write its content into a file first",
        ));
    }
    if file.metadata()?.len() > max_bytes {
        return Err(too_large(max_bytes));
    }
    all_of(file, max_bytes)
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

/// As [`read`], for what is read once: a pipe is read to its end as well.
///
/// # Errors
///
/// As there; nobody writes into the pipe.
pub fn read_once(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    all_of(open_once(path)?, max_bytes)
}

/// Opens a file of lines for [`read_line`], `-` being standard input.
///
/// # Errors
///
/// Those of opening; it is a device, or a pipe that nobody writes into. Reading fails where no
/// line ends for [`MAX_STRETCH`] bytes.
pub fn lines(path: &Path) -> io::Result<Stretches<Box<dyn BufRead>>> {
    Ok(Stretches::new(match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(open_once(path)?)),
    }))
}

fn too_large(max_bytes: u64) -> io::Error {
    io::Error::other(format!(
        "it has more than {max_bytes} bytes, which is the most that is read"
    ))
}

fn all_of(file: impl Read, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut content)?;
    match content.len() as u64 > max_bytes {
        true => Err(too_large(max_bytes)),
        false => Ok(content),
    }
}

/// Opens anything but a directory. A pipe without a writer does not keep the caller waiting.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    }
}

/// Opens a plain file, or a pipe that somebody writes into.
fn open_once(path: &Path) -> io::Result<impl Read + use<>> {
    let file = open(path)?;
    let kind = file.metadata()?.file_type();
    let mut begun = Vec::new();
    if kind.is_fifo() {
        // The shell's `<(command)` has no name that anybody else could open it by.
        let has_name = fs::canonicalize(path).is_ok();
        begun.extend(begin(&file, has_name)?);
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    } else if !kind.is_file() {
        return Err(io::Error::other(
            "it is a device; name a file, or `-` for standard input",
        ));
    }
    Ok(io::Cursor::new(begun).chain(file))
}

/// Reads the first byte of a pipe, if there is one yet. From then on, the pipe ends when all have
/// closed it that write into it.
fn begin(mut pipe: &File, has_name: bool) -> io::Result<Option<u8>> {
    let (pause, n_looks) = GRACE;
    for _ in 0..n_looks {
        let mut first = [0];
        match pipe.read(&mut first) {
            Ok(0) if has_name => thread::sleep(pause),
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(first[0])),
            // It has a writer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(
        "it is a pipe that nobody writes into; name a file, or start what writes into it first",
    ))
}

/// Counts the lines of a file that cannot be read: one that has nothing else may have no end.
#[derive(Debug, Default)]
pub struct Unreadable {
    n_lines: u64,
    n_bytes: u64,
}

impl Unreadable {
    /// Counts a line of so many bytes.
    ///
    /// # Errors
    ///
    /// When there are more than [`MAX_UNREADABLE`]: the file is to be read no further.
    pub fn add(&mut self, n_bytes: usize) -> io::Result<()> {
        let (max_lines, max_bytes) = MAX_UNREADABLE;
        self.n_lines += 1;
        self.n_bytes += n_bytes as u64 + 1;
        if self.n_lines <= max_lines && self.n_bytes <= max_bytes {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "more than {max_lines} lines or {} MiB of it cannot be read; name a file of records, or \
             a log, that has nothing else in it",
            max_bytes >> 20
        )))
    }
}

/// A reader that fails where no line ends for [`MAX_STRETCH`] bytes.
#[derive(Debug)]
pub struct Stretches<R> {
    source: R,
    /// Bytes since the last end of a line.
    n_bytes: usize,
}

impl<R: BufRead> Stretches<R> {
    fn new(source: R) -> Self {
        Self { source, n_bytes: 0 }
    }
}

impl<R: BufRead> BufRead for Stretches<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.n_bytes > MAX_STRETCH {
            return Err(io::Error::other(format!(
                "{} MiB of it are without an end of line; name a file of records, or a log that \
                 has lines",
                MAX_STRETCH >> 20
            )));
        }
        self.source.fill_buf()
    }

    fn consume(&mut self, n_bytes: usize) {
        // These bytes are in memory: nothing is read for them, and nothing can fail.
        if let Ok(buffer) = self.source.fill_buf() {
            let used = &buffer[..n_bytes.min(buffer.len())];
            match used.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => self.n_bytes = used.len() - end - 1,
                None => self.n_bytes += used.len(),
            }
        }
        self.source.consume(n_bytes);
    }
}

impl<R: BufRead> Read for Stretches<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_bytes = self.fill_buf()?.read(buffer)?;
        self.consume(n_bytes);
        Ok(n_bytes)
    }
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
    fn a_pipe_is_read_to_its_end_if_it_has_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (path, reason) in [(&*fifo, "nobody"), (Path::new("/dev/zero"), "device")] {
            assert!(lines(path).err().unwrap().to_string().contains(reason));
            let error = read_once(path, 4).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        for pause in [0, 100, 300] {
            let to = fifo.clone();
            let writer = thread::spawn(move || {
                let mut to = OpenOptions::new().write(true).open(to).unwrap();
                thread::sleep(Duration::from_millis(pause));
                io::Write::write_all(&mut to, b"one\ntwo").unwrap();
            });
            assert_eq!(read_once(&fifo, 7).unwrap(), b"one\ntwo");
            writer.join().unwrap();
        }
    }

    #[test]
    fn what_has_no_lines_is_read_no_further() {
        let lines = [b"x".repeat(MAX_LINE), b"\n".to_vec()].concat();
        let source = io::Cursor::new(lines.repeat(80)).chain(io::repeat(0));
        let mut source = Stretches::new(BufReader::new(source));
        let mut line = Vec::new();
        for _ in 0..80 {
            assert_eq!(read_line(&mut source, &mut line).unwrap(), Some(true));
        }
        let error = read_line(&mut source, &mut line).unwrap_err().to_string();
        assert!(error.contains("64 MiB of it"), "{error}");
    }

    #[test]
    fn lines_that_cannot_be_read_are_read_no_further() {
        let (max_lines, max_bytes) = MAX_UNREADABLE;
        for (length, most) in [
            (0, max_lines),
            (MAX_LINE, max_bytes / (MAX_LINE as u64 + 1)),
        ] {
            let mut unreadable = Unreadable::default();
            for _ in 0..most {
                unreadable.add(length).unwrap();
            }
            let error = unreadable.add(length).unwrap_err().to_string();
            assert!(error.contains("100000 lines or 64 MiB"), "{error}");
        }
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
