//! Meaning of a pattern for executables, control groups, and systemd units; for containers in
//! [`container`].
//!
//! Owns the reading of patterns. How they become tables is the automaton's.

pub mod container;

use std::fmt;

use trefoil_ebpf::abi::{CGROUP_PATH, EXECUTABLE_PATH};

use super::glob::Glob;
use super::problem::Fault;

pub use self::container::ContainerPattern;

/// A pattern for the path of an executable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecutablePattern(Glob);

impl ExecutablePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// A malformed glob, or one that no path of a running program can match.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let glob = Glob::parse(text)?;
        if !text.starts_with('/') {
            return Err(
                Fault::new(format!("`{text}` is not an absolute path")).help(format!(
                    "begin with `/`; `/**/{text}` is this name in any directory"
                )),
            );
        }
        check_parts(text)?;
        if glob.shortest() > EXECUTABLE_PATH {
            return Err(Fault::new("the path is too long to be kept").help(format!(
                "paths up to {EXECUTABLE_PATH} bytes can be matched; use `**` for the front of it"
            )));
        }
        Ok(Self(glob))
    }

    /// The pattern as a glob over the whole path.
    #[must_use]
    pub fn glob(&self) -> &Glob {
        &self.0
    }
}

impl fmt::Display for ExecutablePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Refuses what no path of the kernel's looks like.
fn check_parts(text: &str) -> Result<(), Fault> {
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    if text[1..].split('/').any(odd) {
        return Err(
            Fault::new(format!("`{text}` is not how the kernel writes a path"))
                .help("leave out `//`, `.`, `..` and a `/` at the end"),
        );
    }
    Ok(())
}

/// A pattern for the path of a control group. The groups within a group belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPattern(Glob);

impl CgroupPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// A malformed glob, or one that no path of a control group can match.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        const MOUNT_POINT: &str = "/sys/fs/cgroup";
        let glob = Glob::parse(text)?;
        if !text.starts_with('/') {
            return Err(
                Fault::new(format!("`{text}` is not the path of a control group")).help(format!(
                    "begin with `/`, the root of the hierarchy, as in `/system.slice/{text}`"
                )),
            );
        }
        if let Some(path) = text.strip_prefix(MOUNT_POINT)
            && (path.is_empty() || path.starts_with('/'))
        {
            return Err(Fault::new(format!(
                "`{text}` is where the hierarchy is mounted, not a path in it"
            ))
            .help(format!("leave out `{MOUNT_POINT}`")));
        }
        if text != "/" {
            check_parts(text)?;
        }
        if glob.shortest() > CGROUP_PATH {
            return Err(Fault::new("the path is too long to be kept")
                .help(format!("paths up to {CGROUP_PATH} bytes can be matched")));
        }
        Ok(Self(glob))
    }

    /// True when the control group `path` is one that matches, or is within one.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        if self.is_root() {
            return path.first() == Some(&b'/');
        }
        let ends = (0..path.len()).filter(|&end| path[end] == b'/');
        ends.chain([path.len()])
            .any(|end| self.0.matches(&path[..end]))
    }

    /// True for `/`, which everything is in.
    pub(super) fn is_root(&self) -> bool {
        self.0.as_str() == "/"
    }

    /// The pattern as a glob over the whole path of the outermost group that matches.
    pub(super) fn glob(&self) -> &Glob {
        &self.0
    }
}

impl fmt::Display for CgroupPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Types of units that have a control group.
const UNIT_TYPES: [&str; 6] = ["service", "scope", "slice", "socket", "mount", "swap"];
/// Types of units that have none.
const TYPES_WITHOUT_CGROUP: [&str; 5] = ["target", "timer", "path", "device", "automount"];

/// A pattern for systemd units, matched against the path of a control group.
///
/// A unit of the system stands behind slices alone: `/a.slice/a-b.slice/x.service`. Nothing
/// further down counts, because there the owner of a delegated subtree gives the names: a
/// user's manager is such a subtree, so nobody can name a unit of his own after one of the
/// system's. The groups within a unit belong to it.
///
/// Units of a user's manager are named behind the manager's own unit:
/// `user@1000.service/backup.service`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnitPattern {
    text: String,
    /// Name of the user's manager, for a unit of one.
    pub(super) manager: Option<Glob>,
    pub(super) place: UnitPlace,
    /// Alternatives for the name.
    pub(super) names: Vec<Glob>,
}

/// Where in the tree a unit stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum UnitPlace {
    /// Behind any number of slices.
    AnySlice,
    /// A slice's place follows from its name: `a-b.slice` is in `a.slice`. Behind
    /// exactly these.
    Slices(Vec<String>),
    /// A slice whose name is known up to the last of these only: behind them and
    /// any number of others.
    SlicesAndAny(Vec<String>),
}

impl UnitPattern {
    /// Reads a pattern. One that ends in `*` means services, scopes, sockets,
    /// mounts and swaps; slices are written with `.slice`.
    ///
    /// # Errors
    ///
    /// A malformed glob, or one that no control group of a unit can match.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let (manager, name) = match text.split_once('/') {
            Some((manager, name)) => (Some(parse_manager(manager, name, text)?), name),
            None => (None, text),
        };
        if name.contains("**") {
            return Err(
                Fault::new(format!("`{text}` has `**` in the name of a unit"))
                    .help("`*` is enough: names of units have no `/`"),
            );
        }
        let glob = Glob::parse(name)?;
        if glob.shortest() > CGROUP_PATH {
            return Err(Fault::new("the name is too long for a unit"));
        }
        let (place, names) = match name.rsplit_once('.') {
            Some(("", _)) => return Err(unit_without_type(text)),
            Some(("-", "slice")) if manager.is_some() => {
                let manager = text.trim_end_matches("/-.slice");
                return Err(Fault::new(format!("`{text}` is all of `{manager}`"))
                    .help(format!("write `{manager}`")));
            }
            Some((stem, "slice")) => (slice_place(stem), vec![glob]),
            Some((stem, kind)) if UNIT_TYPES.contains(&kind) => {
                if stem.ends_with('@') {
                    return Err(
                        Fault::new(format!("`{text}` is a template, which never runs"))
                            .help(format!("write `{stem}*.{kind}` for all its instances")),
                    );
                }
                (UnitPlace::AnySlice, vec![glob])
            }
            Some((stem, kind)) if TYPES_WITHOUT_CGROUP.contains(&kind) => {
                return Err(Fault::new(format!("a {kind} unit runs no process"))
                    .help(format!("name what it starts, such as `{stem}.service`")));
            }
            _ => (UnitPlace::AnySlice, names_of_any_type(name, text)?),
        };
        Ok(Self {
            text: text.to_owned(),
            manager,
            place,
            names,
        })
    }

    /// True when the control group `path` is within a unit that matches. Goes
    /// through the path part by part; the tables of the automaton are tested
    /// against this.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let Some(path) = path.strip_prefix(b"/") else {
            return false;
        };
        let mut parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        if let Some(manager) = &self.manager {
            let Some(at) = (0..parts.len()).find(|&at| !is_slice(parts[at])) else {
                return false;
            };
            // The first part that is no slice is the only place for a manager.
            if !matches_escaped(manager, parts[at]) || at + 1 == parts.len() {
                return false;
            }
            parts.drain(..=at);
        }
        let (chain, more) = match &self.place {
            UnitPlace::AnySlice => (&[][..], true),
            UnitPlace::Slices(chain) => (&chain[..], false),
            UnitPlace::SlicesAndAny(chain) => (&chain[..], true),
        };
        if self.is_root_slice() {
            return true;
        }
        for (index, slice) in chain.iter().enumerate() {
            let is_it = |part: &&[u8]| *part == slice.as_bytes() || is_escaped(part, slice);
            if !parts.get(index).is_some_and(is_it) {
                return false;
            }
        }
        for part in &parts[chain.len()..] {
            if self.names.iter().any(|name| matches_escaped(name, part)) {
                return true;
            }
            if !more || !is_slice(part) {
                return false;
            }
        }
        false
    }

    /// True for `-.slice`, which everything is in.
    pub(super) fn is_root_slice(&self) -> bool {
        self.names.iter().any(|name| name.as_str() == "-.slice")
    }
}

impl fmt::Display for UnitPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.text)
    }
}

fn parse_manager(manager: &str, name: &str, whole: &str) -> Result<Glob, Fault> {
    let names_manager = manager
        .strip_prefix("user@")
        .and_then(|rest| rest.strip_suffix(".service"))
        .is_some_and(|user| !user.is_empty());
    if names_manager && !name.contains('/') && !manager.contains("**") {
        return Glob::parse(manager);
    }
    Err(Fault::new(format!("`{whole}` is not the name of a unit")).help(
        "`/` separates a user's manager from a unit of it, as in `user@1000.service/x.service`; \
         a unit of the system is named alone, whatever slice it is in",
    ))
}

fn unit_without_type(text: &str) -> Fault {
    Fault::new(format!("`{text}` does not end in the type of a unit")).help(format!(
        "write `{text}.service`; types are {}; `{text}*` is every unit whose name begins so",
        UNIT_TYPES.join(", ")
    ))
}

/// Expands a name that ends in `*` and has no type, to one pattern for each type but `slice`.
fn names_of_any_type(name: &str, whole: &str) -> Result<Vec<Glob>, Fault> {
    let Some(beginning) = name.strip_suffix('*') else {
        return Err(unit_without_type(whole));
    };
    // The `*` stands for the rest of the name before its type, so that a type that
    // is already begun would be expected twice.
    if let Some((stem, begun)) = beginning.rsplit_once('.')
        && !begun.is_empty()
        && UNIT_TYPES.iter().any(|kind| kind.starts_with(begun))
    {
        return Err(
            Fault::new(format!("`{whole}` has the type of the unit in part")).help(format!(
                "write it in full, as in `{stem}.service`, or `{stem}*`"
            )),
        );
    }
    let types = UNIT_TYPES.iter().filter(|&&kind| kind != "slice");
    types
        .map(|kind| Glob::parse(&format!("{name}.{kind}")))
        .collect()
}

/// Where slices with this name (without `.slice`) are. As systemd has it,
/// `a-b-c` is in `a-b`, which is in `a`.
fn slice_place(stem: &str) -> UnitPlace {
    let literal = stem.find(['*', '?', '[']).unwrap_or(stem.len());
    let parents = stem[..literal].match_indices('-').map(|(dash, _)| dash);
    let chain = parents
        .filter(|&dash| dash > 0)
        .map(|dash| format!("{}.slice", &stem[..dash]))
        .collect();
    if literal == stem.len() {
        UnitPlace::Slices(chain)
    } else {
        UnitPlace::SlicesAndAny(chain)
    }
}

fn is_slice(part: &[u8]) -> bool {
    part.len() > b".slice".len() && part.ends_with(b".slice")
}

/// Systemd puts `_` before a name that would clash with a file of the kernel's in
/// a control group's directory (`cpu.service`, `cgroup.x`), or that begins with
/// `_` or `.` itself.
fn is_escaped(part: &[u8], name: &str) -> bool {
    part.strip_prefix(b"_") == Some(name.as_bytes())
}

fn matches_escaped(glob: &Glob, part: &[u8]) -> bool {
    glob.matches(part)
        || part
            .strip_prefix(b"_")
            .is_some_and(|name| glob.matches(name))
}

/// A control group in which systemd would put the unit `name`, for questions about
/// a unit that need not run. Like a pattern, `name` may be a user's
/// (`user@1000.service/x.service`).
///
/// # Errors
///
/// `name` is not the full name of a unit.
pub fn cgroup_of_unit(name: &str) -> Result<String, Fault> {
    if let Some(wild) = name.find(['*', '?', '[']) {
        return Err(Fault::new(format!("`{name}` is a pattern")).help(format!(
            "replace the `{}` and what follows",
            &name[wild..=wild]
        )));
    }
    let UnitPattern { manager, place, .. } = UnitPattern::parse(name)?;
    let (within, unit) = match (&manager, name.split_once('/')) {
        (Some(manager), Some((_, unit))) => {
            let user = manager
                .as_str()
                .trim_start_matches("user@")
                .trim_end_matches(".service");
            (format!("/user.slice/user-{user}.slice/{manager}"), unit)
        }
        _ => (String::new(), name),
    };
    if unit == "-.slice" {
        return Ok("/".to_owned());
    }
    let slices = match place {
        UnitPlace::Slices(chain) | UnitPlace::SlicesAndAny(chain) => chain,
        UnitPlace::AnySlice if manager.is_some() => vec!["app.slice".to_owned()],
        // The root of the system's units has no slice for scopes of machines and
        // sessions either, but this is where services are.
        UnitPlace::AnySlice => vec!["system.slice".to_owned()],
    };
    let mut path = within;
    for part in slices.iter().map(String::as_str).chain([unit]) {
        path.push('/');
        if needs_escape(part) {
            path.push('_');
        }
        path.push_str(part);
    }
    Ok(path)
}

/// When systemd puts `_` before a name, see `cg_needs_escape` in its sources.
fn needs_escape(name: &str) -> bool {
    const CONTROLLERS: [&str; 12] = [
        "cgroup", "cpu", "cpuacct", "cpuset", "memory", "io", "blkio", "pids", "hugetlb",
        "devices", "rdma", "misc",
    ];
    let prefix = name.split_once('.').map(|(prefix, _)| prefix);
    name.starts_with(['_', '.']) || prefix.is_some_and(|prefix| CONTROLLERS.contains(&prefix))
}

#[cfg(test)]
mod tests;
