//! Names in a policy that this host does not have: units and executables.
//!
//! Reads unit files, control groups and paths; says nothing where it may not look, or
//! where a look would take too long. A policy may be for many hosts, so that none of
//! this is a problem.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    kernel,
    policy::{
        Policy, Problem,
        pattern::{ExecutablePattern, UnitPattern},
        problem::Fault,
    },
};

/// Where systemd looks for unit files, see systemd.unit(5).
const UNIT_DIRECTORIES: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];
/// Entries of directories that one pattern may cost.
const MOST_ENTRIES: usize = 50_000;
/// Units of a system are not deeper than this in the tree of control groups.
const DEEPEST_CGROUP: usize = 8;

/// Everything that the policy names and that is not here.
pub fn warnings(policy: &Policy) -> Vec<Problem> {
    let units = Units::of_this_host();
    let mut warnings = Vec::new();
    for (at, rule) in policy.rules.iter().enumerate() {
        let of_units = rule.units.iter().flatten();
        let of_units = of_units.filter_map(|unit| Some(("unit", units.complaint(unit)?)));
        let of_programs = rule.executables.iter().flatten();
        let of_programs =
            of_programs.filter_map(|exe| Some(("exe", complaint(exe, Path::new("/"))?)));
        warnings.extend(
            of_units
                .chain(of_programs)
                .map(|(key, fault)| fault.at(rule.place, format!("rules[{at}].from.{key}"))),
        );
    }
    warnings
}

/// The units of the system's manager.
#[derive(Debug, Default)]
struct Units {
    /// Names of unit files; for another name of a unit, its own.
    files: BTreeMap<String, Option<String>>,
    /// Paths of control groups.
    running: Vec<String>,
}

impl Units {
    fn of_this_host() -> Self {
        let mut units = Self::default();
        for directory in UNIT_DIRECTORIES {
            units.add_directory(Path::new(directory));
        }
        if let Some(root) = kernel::cgroup2_root() {
            add_cgroups(&root, "", DEEPEST_CGROUP, &mut units.running);
        }
        units
    }

    fn add_directory(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let own = entry
                .file_type()
                .is_ok_and(|kind| kind.is_symlink())
                .then(|| {
                    let target = fs::canonicalize(entry.path()).ok()?;
                    target.file_name()?.to_str().map(str::to_owned)
                });
            // A unit that is masked is a link to /dev/null, and an instance one to its
            // template.
            let own = own.flatten().filter(|own| {
                *own != name && own != "null" && own.contains('.') && !name.contains('@')
            });
            // The first directory that has it counts.
            self.files.entry(name).or_insert(own);
        }
    }

    /// Returns the fault of a pattern for units on this host, if it has one.
    fn complaint(&self, pattern: &UnitPattern) -> Option<Fault> {
        let text = pattern.to_string();
        // Units of users may be in every home. Scopes and slices need no file.
        let is_elsewhere =
            text.contains('/') || text.ends_with(".scope") || text.ends_with(".slice");
        if self.files.is_empty() || is_elsewhere {
            return None;
        }
        let in_system = |name: &str| format!("/system.slice/{name}");
        let runs = self
            .running
            .iter()
            .any(|path| pattern.matches(path.as_bytes()));
        if runs {
            return None;
        }
        if let Some(Some(own)) = self.files.get(&text) {
            return Some(
                Fault::new(format!(
                    "`{text}` is another name of `{own}`, under which it runs"
                ))
                .help(format!("write `{own}`")),
            );
        }
        let (before_instance, _) = text.split_once('@').unwrap_or((&text, ""));
        let is_there = self.files.keys().any(|name| match name.split_once("@.") {
            Some((template, kind)) if text.contains('@') => {
                before_instance.contains(['*', '?', '['])
                    || template == before_instance && (text.ends_with(kind) || text.ends_with('*'))
            }
            Some((template, kind)) => {
                pattern.matches(in_system(&format!("{template}@x.{kind}")).as_bytes())
            }
            None => pattern.matches(in_system(name).as_bytes()),
        });
        if is_there {
            return None;
        }
        let fault = Fault::new(format!("this host has no unit `{text}`"));
        Some(fault.help("`systemctl list-unit-files` and `systemctl list-units` list them"))
    }
}

fn add_cgroups(directory: &Path, path: &str, depth: usize, found: &mut Vec<String>) {
    if depth == 0 || found.len() >= MOST_ENTRIES {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (true, Ok(name)) = (is_group, entry.file_name().into_string()) {
            let path = format!("{path}/{name}");
            add_cgroups(&entry.path(), &path, depth - 1, found);
            found.push(path);
        }
    }
}

/// Returns the fault of a pattern for executables on this host, if it has one. `root` is `/`,
/// but for tests.
fn complaint(pattern: &ExecutablePattern, root: &Path) -> Option<Fault> {
    let text = pattern.to_string();
    let wild = text.find(['*', '?', '[']);
    // The path before its first part that is a pattern.
    let (fixed, rest) = match wild {
        None => (text.as_str(), ""),
        Some(wild) => text.split_at(text[..wild].rfind('/').unwrap_or(0)),
    };
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let not_here = || {
        let help =
            "nothing that runs on this host now or later can be that, unless it is installed";
        let what = match wild {
            None => format!("this host has no `{text}`"),
            Some(_) => format!("this host has no program that is `{text}`"),
        };
        Some(Fault::new(what).help(help))
    };
    let real = match fs::canonicalize(below(fixed)) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return not_here(),
        Err(_) => return None,
    };
    let real = format!("/{}", real.strip_prefix(root).ok()?.to_str()?);
    let fixed_or_root = if fixed.is_empty() { "/" } else { fixed };
    if wild.is_none()
        && let Some(fault) = script(&text, &below(&real))
    {
        return Some(fault);
    }
    if real != fixed_or_root {
        return Some(
            Fault::new(format!(
                "nothing can match `{text}`: `{fixed_or_root}` is a symbolic link, and the kernel \
                 reports where it leads"
            ))
            .help(format!(
                "write `{}{rest}`",
                if real == "/" { "" } else { &real }
            )),
        );
    }
    if wild.is_none() {
        let is_file = below(fixed).is_file();
        return (!is_file).then(|| Fault::new(format!("`{text}` is no file")));
    }
    let mut n_left = MOST_ENTRIES;
    let depth = match rest.contains("**") {
        true => usize::MAX,
        false => rest.matches('/').count(),
    };
    match matches_below(pattern, &below(fixed), fixed, depth, &mut n_left) {
        Some(false) => not_here(),
        Some(true) | None => None,
    }
}

/// A script is run by its interpreter, which is what the kernel reports.
fn script(text: &str, path: &Path) -> Option<Fault> {
    let mut beginning = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(256).read_to_end(&mut beginning).ok()?;
    let line = beginning
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let interpreter = String::from_utf8_lossy(line);
    let interpreter = interpreter.split_whitespace().next()?;
    let fault = Fault::new(format!(
        "nothing can match `{text}`: it is a script, and the kernel reports the program that runs it"
    ));
    let real = fs::canonicalize(interpreter).ok();
    Some(match real.as_deref().and_then(Path::to_str) {
        Some(real) if !real.ends_with("/env") => fault.help(format!(
            "name the unit that it runs in; `{real}` is every script of its kind"
        )),
        _ => fault.help("name the unit that it runs in"),
    })
}

/// True if a file below a directory matches; `None` if that cannot be told.
fn matches_below(
    pattern: &ExecutablePattern,
    directory: &Path,
    path: &str,
    depth: usize,
    n_left: &mut usize,
) -> Option<bool> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    let mut directories: Vec<(PathBuf, String)> = Vec::new();
    for entry in entries.flatten() {
        *n_left = n_left.checked_sub(1)?;
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else {
            continue;
        };
        let path = format!("{path}/{name}");
        // A link's own name is never reported.
        if kind.is_file() && pattern.glob().matches(path.as_bytes()) {
            return Some(true);
        }
        if kind.is_dir() {
            directories.push((entry.path(), path));
        }
    }
    for (directory, path) in directories {
        if depth > 1 && matches_below(pattern, &directory, &path, depth - 1, n_left)? {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn said(root: &Path, pattern: &str) -> Option<String> {
        let fault = complaint(&ExecutablePattern::parse(pattern).unwrap(), root)?;
        Some(format!(
            "{} {}",
            fault.message,
            fault.help.unwrap_or_default()
        ))
    }

    #[test]
    fn executables_that_are_not_here_or_are_called_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for path in ["usr/bin", "usr/lib/postgresql/15/bin", "opt/empty"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in [
            "usr/bin/x",
            "usr/bin/x2.1",
            "usr/lib/postgresql/15/bin/postgres",
        ] {
            fs::write(root.join(path), "\x7fELF").unwrap();
        }
        fs::write(root.join("usr/bin/script"), "#!/bin/sh -e\n").unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("x2.1", root.join("usr/bin/x2")).unwrap();
        symlink("script", root.join("usr/bin/linked")).unwrap();
        for fine in [
            "/usr/bin/x",
            "/usr/bin/x*",
            "/usr/lib/postgresql/*/bin/postgres",
            "/usr/**/postgres",
            "/**",
            "/*/bin/x",
        ] {
            assert_eq!(said(&root, fine), None, "{fine}");
        }
        for (pattern, expected) in [
            ("/usr/bin/y", "no `/usr/bin/y`"),
            ("/nowhere/*", "no program"),
            ("/opt/**", "no program"),
            ("/usr/bin/[yz]*", "no program"),
            ("/usr/*/x*/y", "no program"),
            ("/usr/bin/x2", "write `/usr/bin/x2.1`"),
            ("/bin/x", "write `/usr/bin/x`"),
            ("/bin/*", "write `/usr/bin/*`"),
            ("/usr/bin/script", "a script"),
            ("/usr/bin/linked", "a script"),
            ("/usr/bin", "no file"),
        ] {
            let said = said(&root, pattern).unwrap_or_default();
            assert!(said.contains(expected), "{pattern}: {said}");
        }
    }

    #[test]
    fn units_that_are_not_here_or_are_called_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["nginx.service", "export@.service", "mariadb.service"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        symlink("mariadb.service", dir.path().join("mysql.service")).unwrap();
        symlink("export@.service", dir.path().join("export@9.service")).unwrap();
        let mut units = Units::default();
        let said = |units: &Units, pattern: &str| {
            let fault = units.complaint(&UnitPattern::parse(pattern).unwrap())?;
            Some(format!(
                "{} {}",
                fault.message,
                fault.help.unwrap_or_default()
            ))
        };
        // Where there is no systemd, there is nothing to say.
        assert_eq!(said(&units, "nowhere.service"), None);
        units.add_directory(dir.path());
        units.running = vec!["/system.slice/transient.service".to_owned()];
        for fine in [
            "nginx.service",
            "nginx*",
            "export@7.service",
            "export@*.service",
            "export*",
            "*@*.service",
            "transient.service",
            "session-*.scope",
            "user@1000.service/x.service",
            "web.slice",
        ] {
            assert_eq!(said(&units, fine), None, "{fine}");
        }
        for (pattern, expected) in [
            ("ngnix.service", "no unit `ngnix.service`"),
            ("import@7.service", "no unit"),
            ("export@7.socket", "no unit"),
            ("mysql.service", "write `mariadb.service`"),
        ] {
            let said = said(&units, pattern).unwrap_or_default();
            assert!(said.contains(expected), "{pattern}: {said}");
        }
    }
}
