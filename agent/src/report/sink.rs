//! Where records go.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Field, Record};

/// A record that has its number: nothing of it changes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    record: Record,
    seq: u64,
    line: String,
}

impl Sealed {
    /// Gives the record its number.
    #[must_use]
    pub fn new(mut record: Record, seq: u64) -> Self {
        record.set(Field::Seq, seq);
        let line = record.to_json();
        Self { record, seq, line }
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its number.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Its JSON, without the line's end.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }
}

/// Takes records, in order, one at a time. Never blocks.
pub trait Sink {
    /// Names the sink in reports and in the spool.
    fn name(&self) -> &'static str;

    /// Hands a record over.
    ///
    /// # Errors
    ///
    /// When it could not be handed over in whole: it will be tried again, with
    /// the same record.
    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()>;

    /// True while a part of this record is out and the rest is kept: it is finished
    /// with the next call, also if that is about another record.
    fn is_partway(&self, seq: u64) -> bool {
        let _ = seq;
        false
    }

    /// Opens anew what it writes to, if that has a name.
    ///
    /// # Errors
    ///
    /// When it cannot be opened: handing over will fail for the same reason.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines to a file, a pipe or a terminal, and does not wait for a reader.
#[derive(Debug)]
pub(super) struct Lines {
    file: File,
    /// Writing to it cannot block.
    is_regular: bool,
    /// The record that is being written: its text, empty if there is none, and how much
    /// of it is out.
    seq: u64,
    text: Vec<u8>,
    n_written: usize,
}

impl Lines {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let is_regular = file.metadata()?.is_file();
        Ok(Self {
            file,
            is_regular,
            seq: 0,
            text: Vec::new(),
            n_written: 0,
        })
    }

    /// The file, pipe or terminal.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Goes on in another file, with the whole of a line that was begun.
    pub(super) fn go_on_in(&mut self, file: File) -> io::Result<()> {
        self.is_regular = file.metadata()?.is_file();
        self.file = file;
        self.begin_anew();
        Ok(())
    }

    /// How many bytes are out of a line that was begun.
    pub(super) fn n_written(&self) -> u64 {
        self.n_written as u64
    }

    /// The part that is out is gone: somebody has truncated the file.
    pub(super) fn begin_anew(&mut self) {
        self.n_written = 0;
    }

    /// Writes the text of record `seq`, or what is still missing of it.
    pub(super) fn write(&mut self, seq: u64, text: &str) -> io::Result<()> {
        if self.seq == seq && self.is_partway() {
            return self.write_rest();
        }
        self.write_rest()?;
        self.text.extend_from_slice(text.as_bytes());
        self.seq = seq;
        let result = self.write_rest();
        if self.n_written == 0 {
            self.text.clear();
        }
        result
    }

    /// Writes text that is no record, and waits for whoever reads.
    pub(super) fn write_all(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())
    }

    /// True while the line of this record is begun and not finished.
    pub(super) fn is_at(&self, seq: u64) -> bool {
        self.seq == seq && self.is_partway()
    }

    /// True while a line is begun and not finished.
    pub(super) fn is_partway(&self) -> bool {
        !self.text.is_empty()
    }

    fn write_rest(&mut self) -> io::Result<()> {
        // Bytes that a ready pipe takes at least without blocking (PIPE_BUF).
        const PIPE_STEP: usize = 4096;
        while self.n_written < self.text.len() {
            let mut rest = &self.text[self.n_written..];
            if !self.is_regular {
                // The description may be shared, so it is not set non-blocking.
                if !self.is_writable()? {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                rest = &rest[..rest.len().min(PIPE_STEP)];
            }
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.n_written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.text.clear();
        self.n_written = 0;
        Ok(())
    }

    fn is_writable(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO)?;
        // Without a reader, writing fails at once and says so.
        Ok(fds[0].any().unwrap_or(true))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::OwnedFd};

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_does_not_block_and_goes_on_where_it_stopped() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut lines = Lines::new(File::from(OwnedFd::from(writer))).unwrap();
        let text = "0123456789".repeat(20_000);
        let error = lines.write(1, &text).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut read = Vec::new();
        let mut buffer = [0; 65_536];
        while read.len() < text.len() {
            let n = reader.read(&mut buffer).unwrap();
            read.extend_from_slice(&buffer[..n]);
            let _ = lines.write(1, &text);
        }
        assert!(read == text.as_bytes());
    }

    #[test]
    fn a_line_that_was_begun_is_finished_before_the_next() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut lines = Lines::new(File::from(OwnedFd::from(writer))).unwrap();
        let long = "x".repeat(200_000);
        assert!(lines.write(1, &long).is_err() && lines.is_partway());
        assert!(lines.write(2, "two").is_err(), "nothing of it was written");
        let mut read = Vec::new();
        let mut buffer = [0; 65_536];
        let n = reader.read(&mut buffer).unwrap();
        read.extend_from_slice(&buffer[..n]);
        while lines.write(3, "three").is_err() {
            let n = reader.read(&mut buffer).unwrap();
            read.extend_from_slice(&buffer[..n]);
        }
        drop(lines);
        reader.read_to_end(&mut read).unwrap();
        assert!(read == (long + "three").as_bytes());
    }

    #[test]
    fn a_pipe_without_a_reader_is_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut lines = Lines::new(File::from(OwnedFd::from(writer))).unwrap();
        assert_eq!(
            lines.write(1, "text").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
