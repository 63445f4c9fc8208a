//! The kernel's fixed-size fields about processes, as text and numbers.
//!
//! Pure: what is in the struct, readable. Bytes that are no UTF-8 become
//! replacement characters, here and nowhere else.

use trefoil_ebpf::abi::{
    CGROUP_TRUNCATED, Cgroup, EXECUTABLE_TRUNCATED, Executable, NOBODY_LOGGED_IN,
};

use super::cgroup::Placement;

/// Stands for what was cut off a path.
const CUT: &str = "...";

/// The name of a thread, from a field padded with zeros.
#[must_use]
pub fn comm(field: &[u8; 16]) -> String {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The path of an executable. `.../x` if its front was cut off; `None` if it
/// could not be read.
#[must_use]
pub fn executable_path(executable: &Executable) -> Option<String> {
    let path = text(&executable.path, executable.path_len);
    if path.is_empty() {
        return None;
    }
    Some(if executable.flags & EXECUTABLE_TRUNCATED == 0 {
        path
    } else {
        format!("{CUT}{path}")
    })
}

/// The path of a control group. `/x...` if its end was cut off; `None` if it
/// could not be read.
#[must_use]
pub fn cgroup_path(cgroup: &Cgroup) -> Option<String> {
    let path = text(&cgroup.path, cgroup.path_len);
    if path.is_empty() {
        return None;
    }
    Some(if cgroup.flags & CGROUP_TRUNCATED == 0 {
        path
    } else {
        path + CUT
    })
}

/// Returns the placement by the path of this control group.
#[must_use]
pub fn placement(cgroup: &Cgroup) -> Placement {
    let path = text(&cgroup.path, cgroup.path_len);
    if cgroup.flags & CGROUP_TRUNCATED == 0 {
        Placement::of(&path)
    } else {
        Placement::of_cut(&path)
    }
}

/// A login uid or audit session, unless nobody logged in to start the process.
#[must_use]
pub fn logged_in(id: u32) -> Option<u32> {
    (id != NOBODY_LOGGED_IN).then_some(id)
}

fn text(bytes: &[u8], len: u16) -> String {
    let len = usize::from(len).min(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_ebpf::abi::{CGROUP_PATH, ClassCache, EXECUTABLE_PATH};

    fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
        let mut field = [0; N];
        field[..text.len()].copy_from_slice(text);
        field
    }

    fn executable(path: &[u8], flags: u16) -> Executable {
        Executable {
            used_ns: 0,
            charged: 0,
            pad: 0,
            class: ClassCache::default(),
            inode: 1,
            device: 1,
            path_len: path.len() as u16,
            flags,
            path: padded::<EXECUTABLE_PATH>(path),
        }
    }

    fn cgroup(path: &[u8], flags: u16) -> Cgroup {
        Cgroup {
            class: ClassCache::default(),
            path_len: path.len() as u16,
            flags,
            charged: 0,
            path: padded::<CGROUP_PATH>(path),
        }
    }

    #[test]
    fn names_of_threads_end_at_the_first_zero() {
        assert_eq!(comm(&padded(b"curl")), "curl");
        assert_eq!(comm(b"sixteen-bytes-xx"), "sixteen-bytes-xx");
        assert_eq!(comm(&padded(b"new\0old")), "new");
        assert_eq!(comm(&padded(b"a\xffb")), "a\u{fffd}b");
        assert_eq!(comm(&[0; 16]), "");
    }

    #[test]
    fn paths_say_where_they_were_cut() {
        let path = |path: &[u8], flags| executable_path(&executable(path, flags));
        assert_eq!(path(b"/usr/bin/curl", 0).as_deref(), Some("/usr/bin/curl"));
        assert_eq!(
            path(b"/bin/x", EXECUTABLE_TRUNCATED).as_deref(),
            Some(".../bin/x")
        );
        assert_eq!(path(b"", 0), None);

        let path = |path: &[u8], flags| cgroup_path(&cgroup(path, flags));
        assert_eq!(path(b"/system.slice", 0).as_deref(), Some("/system.slice"));
        assert_eq!(
            path(b"/system.sl", CGROUP_TRUNCATED).as_deref(),
            Some("/system.sl...")
        );
        assert_eq!(path(b"", 0), None);
    }

    #[test]
    fn a_length_beyond_the_field_is_the_whole_field() {
        let mut odd = cgroup(b"/x", 0);
        odd.path_len = u16::MAX;
        assert_eq!(cgroup_path(&odd).map(|path| path.len()), Some(CGROUP_PATH));
    }

    #[test]
    fn the_unit_of_a_cut_path_is_not_guessed() {
        let unit = |flags| placement(&cgroup(b"/system.slice/x.service", flags)).unit;
        assert_eq!(unit(0).as_deref(), Some("x.service"));
        assert_eq!(unit(CGROUP_TRUNCATED), None);
    }

    #[test]
    fn nobody_logged_in_is_no_id() {
        assert_eq!(logged_in(NOBODY_LOGGED_IN), None);
        assert_eq!(logged_in(0), Some(0));
    }
}
