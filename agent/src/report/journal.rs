//! The journal, over its native protocol.
//!
//! One datagram per record to journald's socket; see
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. A record that is too large for
//! a datagram goes as a sealed memory file. The socket's name is resolved for
//! every record, so that a journald that was restarted is found again.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg, setsockopt, sockopt},
    },
};

use super::{Field, Record, Sealed, Sink, Value, field::JOURNAL_NAMES};

/// Where the journal is, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSettings {
    /// journald's socket for the native protocol.
    pub socket: PathBuf,
    /// Send `OBJECT_PID`.
    ///
    /// With it, journald looks that process up by itself and adds what it finds:
    /// also the whole command line, secrets included, and, if the process is gone
    /// and its number is in use again, names and unit of another one. Hence off;
    /// `TREFOIL_PID` and `TREFOIL_START_TIME` name the process.
    pub object_pid: bool,
}

impl JournalSettings {
    /// The journal behind this socket, without `OBJECT_PID`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            object_pid: false,
        }
    }
}

/// A socket to journald.
#[derive(Debug)]
pub struct Journal {
    settings: JournalSettings,
    socket: UnixDatagram,
    entry: Vec<u8>,
}

impl Journal {
    /// Opens a socket; journald need not be there yet.
    ///
    /// # Errors
    ///
    /// When there are no sockets to be had.
    pub fn open(settings: JournalSettings) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // As much as libsystemd asks for. With less, more records take the way of
        // a memory file, which is slower and otherwise as good.
        let _ = setsockopt(&socket, sockopt::SndBuf, &(8 << 20));
        Ok(Self {
            settings,
            socket,
            entry: Vec::new(),
        })
    }
}

impl Sink for Journal {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn hand_over(&mut self, sealed: &Sealed) -> io::Result<()> {
        /// From here on `ENOBUFS` may mean that the size is the problem.
        const LARGE: usize = 16 << 10;
        encode(sealed.record(), self.settings.object_pid, &mut self.entry);
        let Err(error) = self.socket.send_to(&self.entry, &self.settings.socket) else {
            return Ok(());
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMSGSIZE) => self.hand_over_file(),
            Some(Errno::ENOBUFS) if self.entry.len() > LARGE => self.hand_over_file(),
            _ => Err(error),
        }
    }
}

impl Journal {
    fn hand_over_file(&self) -> io::Result<()> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file: OwnedFd = memfd_create("trefoil-record", flags)?;
        let mut file = File::from(file);
        file.write_all(&self.entry)?;
        // journald maps what is sealed, and copies anything else.
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let fds = [file.as_raw_fd()];
        let address = UnixAddr::new(&self.settings.socket)?;
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&[])],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            Some(&address),
        )?;
        Ok(())
    }
}

/// Writes a record as an entry of the journal.
fn encode(record: &Record, object_pid: bool, entry: &mut Vec<u8>) {
    entry.clear();
    put(entry, b"MESSAGE", record.message().as_bytes());
    put(entry, b"PRIORITY", &[b'0' + record.priority() as u8]);
    put(entry, b"MESSAGE_ID", record.kind().message_id().as_bytes());
    put(entry, b"SYSLOG_IDENTIFIER", b"trefoil");
    // `journalctl -u UNIT` shows what root says about it in these two fields.
    if let Some(unit) = record.text(Field::Unit) {
        put(entry, b"OBJECT_SYSTEMD_UNIT", unit.as_bytes());
    }
    if let Some(unit) = record.text(Field::UserUnit) {
        put(entry, b"OBJECT_SYSTEMD_USER_UNIT", unit.as_bytes());
    }
    if let Some(pid) = record.number(Field::Pid).filter(|_| object_pid) {
        put(entry, b"OBJECT_PID", pid.to_string().as_bytes());
    }
    for (field, value) in record.fields() {
        let name = JOURNAL_NAMES[*field as usize].as_bytes();
        match value {
            Value::Text(text) => put(entry, name, text.as_bytes()),
            Value::Number(number) => put(entry, name, number.to_string().as_bytes()),
        }
    }
}

/// One field. A value with a line's end in it is preceded by its length.
fn put(entry: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    entry.extend_from_slice(name);
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;
    use crate::report::{Kind, Priority};

    fn record() -> Record {
        let mut record = Record::new(Kind::Violation, Priority::Warning, 0, "one\ntwo");
        record.set(Field::Unit, "nginx.service");
        record.set(Field::Pid, 4711_u64);
        record
    }

    #[test]
    fn an_entry_has_the_journals_own_fields_and_ours() {
        let mut entry = Vec::new();
        encode(&record(), false, &mut entry);
        let expected = b"MESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\nPRIORITY=4\n\
            MESSAGE_ID=b286d1b1095e4b0182e8c6d8d4c79ffb\nSYSLOG_IDENTIFIER=trefoil\n\
            OBJECT_SYSTEMD_UNIT=nginx.service\nTREFOIL_EVENT=violation\n\
            TREFOIL_TIME=1970-01-01T00:00:00.000000Z\nTREFOIL_PID=4711\n\
            TREFOIL_UNIT=nginx.service\n";
        assert_eq!(
            String::from_utf8_lossy(&entry),
            String::from_utf8_lossy(expected)
        );
        encode(&record(), true, &mut entry);
        assert!(String::from_utf8_lossy(&entry).contains("\nOBJECT_PID=4711\n"));
    }

    #[test]
    fn without_a_journald_the_record_stays_here() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let settings = JournalSettings::new(&socket);
        let mut journal = Journal::open(settings).unwrap();
        let sealed = Sealed::new(record(), 1);
        assert_eq!(
            journal.hand_over(&sealed).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        // One that is gone leaves its socket's name behind.
        drop(UnixDatagram::bind(&socket).unwrap());
        assert_eq!(
            journal.hand_over(&sealed).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        std::fs::remove_file(&socket).unwrap();
        let journald = UnixDatagram::bind(&socket).unwrap();
        journal.hand_over(&sealed).unwrap();
        let mut buffer = [0; 4096];
        let n = journald.recv(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"MESSAGE\n"));
        // One that does not read makes nobody wait.
        let error = loop {
            if let Err(error) = journal.hand_over(&sealed) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_too_large_for_a_datagram_goes_as_a_sealed_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let settings = JournalSettings::new(path);
        let mut journal = Journal::open(settings).unwrap();
        setsockopt(&journal.socket, sockopt::SndBuf, &4096).unwrap();
        let mut large = record();
        large.set(Field::Cgroup, "x".repeat(1 << 20));
        journal.hand_over(&Sealed::new(large, 1)).unwrap();

        let mut buffer = [0; 16];
        let mut iov = [io::IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let flags = MsgFlags::empty();
        let message =
            recvmsg::<()>(journald.as_raw_fd(), &mut iov, Some(&mut space), flags).unwrap();
        assert_eq!(message.bytes, 0);
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no file was sent");
        };
        let path = format!("/proc/self/fd/{}", fds[0]);
        let mut file = File::open(path).unwrap();
        assert!(file.metadata().unwrap().len() > 1 << 20);
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("x\n"), "{}", &text[text.len() - 40..]);
    }
}
