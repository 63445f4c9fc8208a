//! Names in the path of a control group: unit, slice, user unit, container.
//!
//! Pure: a path in, names out. The rules for units are those of systemd
//! (`cg_path_get_unit`) and the same as those of the policy's `unit` key. The
//! rules for containers are the names that each engine gives its groups.

use std::fmt;

#[cfg(test)]
mod tests;

/// Placement of a control group: the unit, slice and container that it is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The system's unit, such as `nginx.service`, `session-3.scope` or
    /// `user@1000.service`: what stands behind slices alone. Nothing further down
    /// counts, because there the owner of a delegated subtree gives the names.
    pub unit: Option<String>,
    /// The innermost slice the unit is in; `-.slice` is the root of all.
    pub slice: Option<String>,
    /// The unit of a user's manager, such as `user@1000.service/backup.service`.
    /// The name is the user's own choice.
    pub user_unit: Option<String>,
    /// The container, if an engine of the system has made its group: whoever has a
    /// subtree calls a group in it as he likes, and a wrong name is worse than none.
    pub container: Option<Container>,
}

/// A container, as its engine calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    /// Maker of the group: `docker`, `podman`, `containerd`, `nerdctl`, `cri-o`, `kubernetes`
    /// (by an engine that does not say so), `systemd-nspawn`, `lxc`.
    pub engine: &'static str,
    /// The id of 64 hexadecimal digits; for `systemd-nspawn` and `lxc` the name.
    pub id: String,
}

impl Container {
    /// The kernel's automaton, and so rules, take any number of digits for an id.
    fn is_named_in_whole(&self) -> bool {
        matches!(self.engine, "systemd-nspawn" | "lxc") || is_id(&self.id)
    }
}

impl fmt::Display for Container {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.engine, self.id)
    }
}

impl Placement {
    /// Returns the placement by this path from the root of the hierarchy
    /// (`/system.slice/x.service`).
    #[must_use]
    pub fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let n_slices = count_slices(&parts);
        let unit = parts.get(n_slices).and_then(|part| unit_name(part));
        let user_unit = unit
            .filter(|unit| is_user_manager(unit))
            .and_then(|manager| {
                let below = &parts[n_slices + 1..];
                let unit = unit_name(below.get(count_slices(below))?)?;
                Some(format!("{manager}/{unit}"))
            });
        let slice = match parts[..n_slices].last() {
            Some(slice) => Some(unescape(slice)),
            None => unit.map(|_| "-.slice"),
        };
        Self {
            unit: unit.map(str::to_owned),
            slice: slice.map(str::to_owned),
            user_unit,
            container: container_for_rules(path).filter(Container::is_named_in_whole),
        }
    }

    /// As [`of`](Self::of), for a path whose end was cut off: the last name that
    /// is left may be the beginning of another one, so it does not count.
    #[must_use]
    pub fn of_cut(path: &str) -> Self {
        Self::of(path.rsplit_once('/').map_or("", |(whole, _)| whole))
    }
}

fn count_slices(parts: &[&str]) -> usize {
    parts.iter().take_while(|part| is_slice(part)).count()
}

fn is_slice(part: &str) -> bool {
    part.len() > ".slice".len() && part.ends_with(".slice")
}

/// The name of a unit, if this is the directory of one that is not a slice.
fn unit_name(part: &str) -> Option<&str> {
    const TYPES: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];
    const LONGEST: usize = 255;
    let name = unescape(part);
    let (stem, kind) = name.rsplit_once('.')?;
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let is_unit = !stem.is_empty()
        && !stem.starts_with('@')
        && stem.bytes().all(is_valid)
        && TYPES.contains(&kind)
        && name.len() <= LONGEST;
    is_unit.then_some(name)
}

/// Systemd puts `_` before a name that would clash with a file of the kernel's
/// (`cpu.service`), or that begins with `_` or `.` itself.
fn unescape(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

fn is_user_manager(unit: &str) -> bool {
    unit.strip_prefix("user@")
        .and_then(|rest| rest.strip_suffix(".service"))
        .is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The container that a rule may name: that of [`Placement`], if nobody but a manager
/// or an engine of the system can have made its group.
///
/// Whoever a subtree was delegated to (a user, for his manager and his containers; a service
/// that has `Delegate=`) makes groups in it under any name, so a name in there proves
/// nothing. A group that stands behind slices alone was made by the system's manager, which
/// never delegates a slice, or by root. Engines that make groups without it have theirs below
/// directories at the root of the hierarchy, where only root can make one: `docker`,
/// `libpod_parent`, `lxc`, `kubepods`.
#[must_use]
pub fn container_for_rules(path: &str) -> Option<Container> {
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let n_above = match parts[..] {
        ["docker" | "libpod_parent" | "lxc", ..] => 1,
        ["kubepods", "burstable" | "besteffort", ..] => 3,
        ["kubepods", ..] => 2,
        _ => count_slices(&parts),
    };
    let part = parts.get(n_above)?;
    let above = &parts[..n_above];
    // The kernel's automaton does not count the digits of an id.
    let container = container_at(above, part, &parts[n_above + 1..], is_hex)?;
    let is_made_there = match above {
        ["docker"] => is_hex(part),
        ["libpod_parent"] => container.engine == "podman",
        ["lxc"] => true,
        ["kubepods", .., pod] => {
            let is_named = matches!(container.engine, "systemd-nspawn" | "lxc");
            pod.len() > "pod".len() && pod.starts_with("pod") && !is_named
        }
        _ => container.engine != "kubernetes",
    };
    // Names of machines are names of hosts. Of those, systemd escapes dashes.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_plain = match container.engine {
        "systemd-nspawn" => {
            container.id.bytes().all(is_name)
                && part.matches('\\').count() == container.id.matches('-').count()
                && part.matches("\\x2d").count() == container.id.matches('-').count()
        }
        _ => container.id.bytes().all(|byte| byte.is_ascii_graphic()),
    };
    (is_made_there && is_plain && !part.ends_with(".slice")).then_some(container)
}

/// Returns the container that the name of a group claims, whoever has given the name: the
/// outermost, since only that one can have been named by an engine of the host. Groups
/// further in may be named by whoever is in the container.
#[must_use]
pub fn claimed_container(path: &str) -> Option<Container> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    (0..parts.len()).find_map(|at| container_at(&parts[..at], parts[at], &parts[at + 1..], is_id))
}

/// Groups of one container are called after its id. Those of an engine's own
/// helpers have other names (`libpod-conmon-ID.scope`), which are not listed.
pub const PREFIXES: &[(&str, &str)] = &[
    ("docker-", "docker"),
    ("libpod-", "podman"),
    // Beside a `supervisor` group, in the unit of a service that runs podman.
    ("libpod-payload-", "podman"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "nerdctl"),
    ("crio-", "cri-o"),
];

fn container_at(
    above: &[&str],
    part: &str,
    below: &[&str],
    is_id: impl Fn(&str) -> bool,
) -> Option<Container> {
    let found = |engine, id: &str| {
        Some(Container {
            engine,
            id: id.to_owned(),
        })
    };
    if above == ["lxc"] && !part.is_empty() {
        return found("lxc", part);
    }
    let stem = part.strip_suffix(".scope").unwrap_or(part);
    for (prefix, engine) in PREFIXES {
        if let Some(id) = stem.strip_prefix(prefix).filter(|id| is_id(id)) {
            return found(engine, id);
        }
    }
    if is_id(part) {
        // Engines that make groups themselves, without systemd, use bare ids.
        let parent = above.last()?;
        if above == ["docker"] {
            return found("docker", part);
        }
        let is_kubernetes = above.iter().any(|part| part.starts_with("kubepods"));
        if is_kubernetes && (parent.starts_with("pod") || parent.contains("-pod")) {
            return found("kubernetes", part);
        }
        return None;
    }
    if let Some(machine) = nspawn_machine(part) {
        // The process that set the container up is not in it.
        let is_inside = below.first() != Some(&"supervisor");
        return is_inside.then_some(Container {
            engine: "systemd-nspawn",
            id: machine,
        });
    }
    let name = part.strip_prefix("lxc.payload.")?;
    (!name.is_empty()).then(|| Container {
        engine: "lxc",
        id: name.to_owned(),
    })
}

/// Digits of the id of a container.
pub const ID_DIGITS: usize = 64;

/// True for the whole id of a container, as engines write it.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    !text.is_empty() && text.bytes().all(is_digit)
}

/// The name of the machine that an nspawn container's unit is called after.
/// Libvirt registers its virtual machines under names of the same form; those
/// are no containers, and their process is the emulator, on this host.
fn nspawn_machine(part: &str) -> Option<String> {
    let escaped = match part.strip_prefix("machine-") {
        Some(rest) => rest.strip_suffix(".scope")?,
        None => part
            .strip_prefix("systemd-nspawn@")?
            .strip_suffix(".service")?,
    };
    let name = unescape_unit(escaped)?;
    (!name.is_empty() && !name.starts_with("qemu-")).then_some(name)
}

/// Undoes systemd's escaping within the name of a unit: `web\x2d1` is `web-1`.
fn unescape_unit(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let hex = rest[at..].strip_prefix("\\x")?.get(..2)?;
        // A sign is a number to the library.
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(hex, 16).ok().filter(|_| is_hex)?);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}
