//! Meaning of a pattern for containers, and where their control groups are.
//!
//! Owns the `container` key. [`crate::owner::cgroup`] says which group is that of a
//! container, and when its name can be believed.

use std::fmt::{self, Write as _};

use crate::owner::cgroup::{ID_DIGITS, container_for_rules, is_id};
use crate::policy::glob::Glob;
use crate::policy::problem::Fault;

/// Engines whose containers can be told by their control groups.
pub const ENGINES: [&str; 8] = [
    "docker",
    "podman",
    "containerd",
    "nerdctl",
    "cri-o",
    "kubernetes",
    "systemd-nspawn",
    "lxc",
];

/// A pattern for the id or the name of a container: `docker:4f2a9c01b7de*`, or without
/// the engine `web-*` for those of all engines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerPattern {
    text: String,
    engine: Option<&'static str>,
    name: Glob,
}

impl ContainerPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// A malformed glob, an engine that is not known, or what no container is called.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let (engine, name) = engine_and_name(text)?;
        if name.is_empty() || name.contains('/') || name.contains("**") {
            return Err(
                Fault::new(format!("`{text}` is not the name of a container"))
                    .help("write an id or a name, as in `docker:4f2a9c01b7de*` or `lxc:web-*`"),
            );
        }
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        // The engines' own lists show such short ids.
        let is_short = name.len() >= 12 && name.len() < ID_DIGITS && name.bytes().all(is_hex);
        if is_short && !matches!(engine, Some("systemd-nspawn" | "lxc")) {
            return Err(
                Fault::new(format!("`{text}` is only the beginning of an id"))
                    .help(format!("write `{text}*`")),
            );
        }
        Ok(Self {
            text: text.to_owned(),
            engine,
            name: Glob::parse(name)?,
        })
    }

    /// True when the control group `path` is within a container that matches. Goes
    /// through the path part by part; the tables of the automaton are tested
    /// against this.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        container_for_rules(&String::from_utf8_lossy(path)).is_some_and(|container| {
            self.is_of(container.engine) && self.name.matches(container.id.as_bytes())
        })
    }

    /// True when the pattern is for containers of this engine, too.
    pub(in crate::policy) fn is_of(&self, engine: &str) -> bool {
        self.engine.is_none_or(|own| own == engine)
    }

    /// The pattern for the id or the name itself.
    pub(in crate::policy) fn name(&self) -> &Glob {
        &self.name
    }
}

impl fmt::Display for ContainerPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.text)
    }
}

fn engine_and_name(text: &str) -> Result<(Option<&'static str>, &str), Fault> {
    let Some((engine, name)) = text.split_once(':') else {
        return Ok((None, text));
    };
    match ENGINES.iter().find(|&&known| known == engine) {
        Some(&engine) => Ok((Some(engine), name)),
        None => Err(Fault::new(format!(
            "`{engine}` is not an engine whose containers are known"
        ))
        .help(format!("engines are {}", ENGINES.join(", ")))),
    }
}

/// A control group in which the engine would put the container `text`, an engine and
/// a whole id or name, for questions about a container that need not run.
///
/// # Errors
///
/// `text` is not of this form.
pub fn cgroup_of_container(text: &str) -> Result<String, Fault> {
    let (Some(engine), name) = engine_and_name(text)? else {
        return Err(
            Fault::new(format!("`{text}` does not say which engine's")).help(format!(
                "write it as records do, as in `docker:{text}`; engines are {}",
                ENGINES.join(", ")
            )),
        );
    };
    let path = match engine {
        "systemd-nspawn" => {
            let mut escaped = String::new();
            for byte in name.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                        escaped.push(char::from(byte));
                    }
                    other => write!(escaped, "\\x{other:02x}").expect("strings take everything"),
                }
            }
            format!("/machine.slice/systemd-nspawn@{escaped}.service")
        }
        "lxc" => format!("/lxc.payload.{name}"),
        _ if !is_id(name) => {
            return Err(Fault::new(format!("`{name}` is not the id of a container"))
                .help(format!("write all {ID_DIGITS} hexadecimal digits of it")));
        }
        "docker" => format!("/system.slice/docker-{name}.scope"),
        "podman" => format!("/machine.slice/libpod-{name}.scope"),
        "containerd" => format!("/kubepods.slice/cri-containerd-{name}.scope"),
        "cri-o" => format!("/kubepods.slice/crio-{name}.scope"),
        "nerdctl" => format!("/system.slice/nerdctl-{name}.scope"),
        _ => format!("/kubepods/pod0/{name}"),
    };
    let is_it =
        |found: &crate::owner::cgroup::Container| found.engine == engine && found.id == name;
    container_for_rules(&path)
        .as_ref()
        .is_some_and(is_it)
        .then_some(path)
        .ok_or_else(|| {
            Fault::new(format!("`{text}` is not what a container is called"))
                .help("write the name without wildcards, as records do")
        })
}
