//! Connections that a policy would cut if it were enforced now: those that
//! exist and that it does not approve, the caller's own session before all
//! others.
//!
//! Owns judging them, their order and their words, and asking before the first
//! enforcement. It must not keep a daemon from starting.

mod session;
mod tables;
mod text;

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::Serialize;
use trefoil_ebpf::abi::{Decision, NO_RULE, verdict};

use self::session::{Asker, Whose};
use super::Failure;
use crate::{
    clock,
    connections::{Connection, Connections, Effort, Holder},
    geo::Geo,
    kernel::{LoadSettings, PinDir, Reader, cgroup_path},
    monitor::Compilation,
    owner::cgroup::Placement,
    policy::{Compiled, Mode, Question, compile::RuleSummary, service::Protocol},
    report::words,
};

/// A connection and what becomes of it, under the names that records use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    whose: Whose,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    protocol: String,
    src_addr: IpAddr,
    src_port: u16,
    dst_addr: IpAddr,
    dst_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_country: Option<&'static str>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe_note: Option<&'static str>,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
}

/// Effects of enforcing a policy on the connections that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cuts {
    /// Those that would be cut: sessions first.
    pub would_cut: Vec<Fate>,
    /// Sessions of whoever asks that would stay.
    #[serde(skip)]
    stays: Vec<Fate>,
    /// Connections that were judged: those of watched processes, to places that
    /// are not local.
    open_connections: usize,
    /// Processes that could not be looked into.
    unread_processes: usize,
    /// Network namespaces that there was no time for.
    unread_namespaces: usize,
}

impl Cuts {
    /// Looks at this host. `cgroup` is the directory of the control group that is
    /// watched: what others do is not cut. `pin_dir` has the tables of an agent that
    /// runs or ran, if there was one. It goes as far as `effort` says.
    ///
    /// # Errors
    ///
    /// If processes cannot be listed.
    pub fn find(
        compiled: &Compiled,
        geo: Option<&Geo>,
        cgroup: &Path,
        pin_dir: &Path,
        effort: Effort,
    ) -> io::Result<Self> {
        let proc = Path::new("/proc");
        let mut connections = Connections::read(proc, effort)?;
        tables::add_flows(&mut connections.list, pin_dir);
        let judge = Judge {
            compiled,
            geo,
            // Connections that cannot be told apart are all watched.
            watched: cgroup_path(cgroup).unwrap_or_else(|| "/".to_owned()),
            origins: match compiled.origins {
                Some(_) => tables::origins(&connections.list, pin_dir),
                None => HashMap::new(),
            },
            asker: Asker::this_process(proc),
        };
        Ok(judge.cuts(&connections))
    }
}

/// All that a verdict depends on besides the connection.
struct Judge<'a> {
    compiled: &'a Compiled,
    geo: Option<&'a Geo>,
    /// Path of the control group that is watched, with all below it.
    watched: String,
    /// Where login sessions came from, by audit session.
    origins: HashMap<u32, IpAddr>,
    asker: Asker,
}

impl Judge<'_> {
    fn cuts(&self, connections: &Connections) -> Cuts {
        let mut cuts = Cuts {
            unread_processes: connections.n_unread,
            unread_namespaces: connections.n_unread_namespaces,
            ..Cuts::default()
        };
        for connection in &connections.list {
            let Some((decision, holder)) = self.decide(connection) else {
                continue;
            };
            if decision.verdict == verdict::LOCAL {
                continue;
            }
            cuts.open_connections += 1;
            let whose = self.asker.whose(connection);
            let fate = || self.fate(connection, holder, whose, &decision);
            if !verdict::is_approved(decision.verdict) {
                cuts.would_cut.push(fate());
            } else if whose == Whose::Yours {
                cuts.stays.push(fate());
            }
        }
        cuts.would_cut.sort_by_key(|fate| fate.whose);
        cuts
    }

    /// The decision, and the holder whose it is. Any of several holders may be the
    /// next that sends, so the worst of their verdicts counts. `None` if nobody
    /// holds it who is watched.
    fn decide<'c>(&self, connection: &'c Connection) -> Option<(Decision, Option<&'c Holder>)> {
        if connection.holders.is_empty() {
            return (self.watched == "/").then(|| (self.judge(connection, None), None));
        }
        let decisions = connection
            .holders
            .iter()
            .filter(|holder| self.watches(holder))
            .map(|holder| (self.judge(connection, Some(holder)), Some(&**holder)));
        decisions.min_by_key(|(decision, _)| verdict::is_approved(decision.verdict))
    }

    fn watches(&self, holder: &Holder) -> bool {
        self.watched == "/"
            || holder.cgroup.as_ref().is_some_and(|path| {
                path.strip_prefix(&self.watched)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }

    fn judge(&self, connection: &Connection, holder: Option<&Holder>) -> Decision {
        let executable = holder.and_then(|holder| holder.executable.as_ref());
        self.compiled.judge(&Question {
            cgroup: holder.and_then(Holder::cgroup_for_rules),
            executable: executable.and_then(|executable| executable.for_rules()),
            is_foreign: executable.is_some_and(|executable| executable.foreign),
            uid: uid(connection, holder),
            gid: holder.and_then(|holder| holder.gid),
            interactive: holder.and_then(|holder| holder.interactive),
            origin: holder
                .and_then(|holder| self.origins.get(&holder.session?))
                .copied(),
            direction: connection.direction,
            near_port: Some(connection.local.port()),
            destination: connection.peer.ip(),
            may_stay: true,
            protocol: connection.protocol,
            port: connection.peer.port(),
            time_us: clock::unix_us(),
        })
    }

    fn fate(
        &self,
        connection: &Connection,
        holder: Option<&Holder>,
        whose: Whose,
        decision: &Decision,
    ) -> Fate {
        let (near, far): (SocketAddr, SocketAddr) = (connection.local, connection.peer);
        let executable = holder.and_then(|holder| holder.executable.as_ref());
        let cgroup = holder.and_then(|holder| holder.cgroup.clone());
        let placement = cgroup.as_deref().map(Placement::of).unwrap_or_default();
        let rule = (decision.rule != NO_RULE)
            .then(|| self.compiled.rules.get(usize::from(decision.rule)))
            .flatten();
        Fate {
            whose,
            direction: connection.accepted.then_some("accepted"),
            protocol: Protocol(connection.protocol).to_string(),
            src_addr: near.ip(),
            src_port: near.port(),
            dst_addr: far.ip(),
            dst_port: far.port(),
            dst_country: self
                .geo
                .and_then(|geo| geo.country(far.ip()))
                .map(|country| country.as_str()),
            verdict: words::verdict(decision.verdict).unwrap_or("none"),
            rule: rule.map(|RuleSummary { name, .. }| name.clone()),
            pid: holder.map(|holder| holder.pid),
            comm: holder.map(|holder| holder.comm.clone()),
            exe: executable.map(|exe| exe.path.to_string_lossy().into_owned()),
            exe_note: executable.and_then(|exe| exe.foreign.then_some("foreign")),
            uid: uid(connection, holder),
            unit: placement.unit,
            user_unit: placement.user_unit,
            container: placement.container.map(|container| container.to_string()),
            cgroup,
        }
    }
}

fn uid(connection: &Connection, holder: Option<&Holder>) -> u32 {
    holder
        .and_then(|holder| holder.uid)
        .unwrap_or(connection.uid)
}

/// Before a policy is enforced that was not in force before: says what it cuts. On
/// a terminal somebody has to agree, by `--yes`; a daemon starts, since nobody is
/// there to be asked and a host that came up unwatched would be worse.
///
/// Returns true if enforcement may begin.
pub fn may_enforce(
    policy: &Compilation,
    geo: &Geo,
    load: &LoadSettings,
    yes: bool,
) -> Result<bool, Failure> {
    if policy.compiled.mode() != Mode::Enforce || is_enforced(&load.pin_dir) {
        return Ok(true);
    }
    let (compiled, cgroup, pin_dir) = (&policy.compiled, &load.cgroup, &load.pin_dir);
    let find = |effort| Cuts::find(compiled, Some(geo), cgroup, pin_dir, effort);
    let Some(mut terminal) = terminal() else {
        // Till the hooks are there, the host is not watched.
        let found = find(Effort::LITTLE);
        match found {
            Ok(cuts) if cuts.would_cut.is_empty() && cuts.unread_namespaces == 0 => {}
            Ok(cuts) => tracing::warn!("{}", cuts.summary()),
            Err(error) => tracing::warn!("what the policy cuts is not known: {error}"),
        }
        return Ok(true);
    };
    let mut text = match find(Effort::MUCH) {
        Ok(cuts) => cuts.text(Mode::Enforce),
        Err(error) => format!("what the policy cuts is not known: {error}\n"),
    };
    if !yes {
        text += "Nothing was changed. Run again with --yes to enforce it, and with --confirm-within 10min \
                 to have that end by itself.\n";
    }
    terminal
        .write_all(format!("policy {}: not enforced yet\n{text}", policy.source).as_bytes())
        .map_err(|error| Failure::Other(format!("write to the terminal: {error}")))?;
    Ok(yes)
}

/// True if an instance before has a policy in force that is enforced: going on
/// with it, or with another one, cuts nobody who had not been asked.
fn is_enforced(pin_dir: &Path) -> bool {
    Reader::open(&PinDir::new(pin_dir)).is_ok_and(|reader| {
        let now_ns = clock::since_boot_ns();
        !reader.links().is_empty() && reader.enforcement().holds_at(now_ns)
    })
}

/// Where somebody reads and could type, if anywhere.
fn terminal() -> Option<Box<dyn Write>> {
    if !io::stdin().is_terminal() {
        return None;
    }
    if io::stderr().is_terminal() {
        return Some(Box::new(io::stderr()));
    }
    io::stdout()
        .is_terminal()
        .then(|| Box::new(io::stdout()) as Box<dyn Write>)
}

#[cfg(test)]
mod tests;
