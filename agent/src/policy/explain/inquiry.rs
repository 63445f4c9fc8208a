//! A question as somebody types it.

use std::net::{IpAddr, SocketAddr};

use crate::policy::evaluate::Question;
use crate::policy::geography::Users;
use crate::policy::network::parse_address;
use crate::policy::pattern::{cgroup_of_unit, container::cgroup_of_container};
use crate::policy::problem::Fault;
use crate::policy::service::Protocol;
use crate::policy::source::Direction;

/// A flow that need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Path of the control group in which the unit would be.
    pub cgroup: Option<String>,
    /// Path of the executable.
    pub executable: Option<String>,
    /// User id.
    pub uid: u32,
    /// Group id, if it is known.
    pub gid: Option<u32>,
    /// Whether there is a login session.
    pub interactive: bool,
    /// Address that somebody logged in from.
    pub origin: Option<IpAddr>,
    /// Which end opened it.
    pub direction: Direction,
    /// This host's port, if one is asked about.
    pub near_port: Option<u16>,
    /// Where to.
    pub destination: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, 0 for none.
    pub port: u16,
    /// When, in microseconds since 1970.
    pub time_us: u64,
}

impl Inquiry {
    /// A flow of root's to `to`, which is `ADDR`, `ADDR:PORT` or `[ADDR]:PORT`, as it is or with
    /// `/PROTOCOL` behind it, as reports show it; by TCP without that.
    ///
    /// # Errors
    ///
    /// `to` is not of this form.
    pub fn to(to: &str) -> Result<Self, Fault> {
        if let Some((destination, protocol)) = to.rsplit_once('/') {
            if protocol.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Fault::new(format!("`{to}` is not one destination"))
                    .help("ask for an address; the number of a protocol goes into --protocol"));
            }
            return Self::to(destination)?.by(protocol);
        }
        let bare = to
            .strip_prefix('[')
            .and_then(|to| to.strip_suffix(']'))
            .unwrap_or(to);
        let (destination, port) = match (to.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
            (Ok(socket), _) => (socket.ip(), socket.port()),
            (_, Ok(address)) => (address, 0),
            _ => {
                return Err(Fault::new(format!("`{to}` is not a destination")).help(
                    "write it as in 192.0.2.1, 192.0.2.1:443, 192.0.2.1:53/udp, 2001:db8::1 or \
                     [2001:db8::1]:443",
                ));
            }
        };
        Ok(Self {
            cgroup: None,
            executable: None,
            uid: 0,
            gid: Some(0),
            interactive: false,
            origin: None,
            direction: Direction::Outbound,
            near_port: None,
            destination,
            protocol: Protocol(6),
            port,
            time_us: 0,
        })
    }

    /// The same flow at this moment, in microseconds since 1970.
    #[must_use]
    pub fn at(mut self, time_us: u64) -> Self {
        self.time_us = time_us;
        self
    }

    /// The same flow by this protocol, a name or a number.
    ///
    /// # Errors
    ///
    /// No protocol, or one without ports to a port.
    pub fn by(mut self, protocol: &str) -> Result<Self, Fault> {
        let protocol = Protocol::parse(protocol)?;
        if self.port != 0 && !protocol.has_ports() {
            return Err(Fault::new(format!("protocol {protocol} has no ports"))
                .help(format!("ask for {} alone", self.destination)));
        }
        self.protocol = protocol;
        Ok(self)
    }

    /// The same flow from this unit, or from the control group with this path.
    ///
    /// # Errors
    ///
    /// Neither a unit's full name nor an absolute path.
    pub fn from_unit(mut self, unit: &str) -> Result<Self, Fault> {
        self.cgroup = Some(if unit.starts_with('/') {
            unit.to_owned()
        } else {
            cgroup_of_unit(unit)?
        });
        Ok(self)
    }

    /// The same flow from the control group with this path.
    ///
    /// # Errors
    ///
    /// Not an absolute path.
    pub fn from_cgroup(mut self, path: &str) -> Result<Self, Fault> {
        if !path.starts_with('/') {
            return Err(
                Fault::new(format!("`{path}` is not the path of a control group")).help(format!(
                    "begin with `/`, the root of the hierarchy, as in /system.slice/{path}"
                )),
            );
        }
        self.cgroup = Some(path.to_owned());
        Ok(self)
    }

    /// The same flow from this container, an engine and a whole id or name.
    ///
    /// # Errors
    ///
    /// Not of this form.
    pub fn from_container(mut self, container: &str) -> Result<Self, Fault> {
        self.cgroup = Some(cgroup_of_container(container)?);
        Ok(self)
    }

    /// The same flow from this executable.
    ///
    /// # Errors
    ///
    /// Not an absolute path.
    pub fn from_executable(mut self, path: &str) -> Result<Self, Fault> {
        if !path.starts_with('/') {
            return Err(Fault::new(format!("`{path}` is not an absolute path"))
                .help("rules and records know programs by where they are, as in /usr/bin/curl"));
        }
        self.executable = Some(path.to_owned());
        Ok(self)
    }

    /// The same flow from this user, by login name or number. Of which group is not
    /// known then.
    ///
    /// # Errors
    ///
    /// The host does not know the name.
    pub fn from_user(mut self, user: &str, users: &dyn Users) -> Result<Self, Fault> {
        let uid = user.parse().ok().or_else(|| users.uid(user));
        self.uid = uid.ok_or_else(|| {
            Fault::new(format!("this host has no user `{user}`"))
                .help("write a login name or a user id")
        })?;
        self.gid = None;
        Ok(self)
    }

    /// The same flow from this group, by name or number.
    ///
    /// # Errors
    ///
    /// The host does not know the name.
    pub fn from_group(mut self, group: &str, users: &dyn Users) -> Result<Self, Fault> {
        let gid = group.parse().ok().or_else(|| users.gid(group));
        self.gid = Some(gid.ok_or_else(|| {
            Fault::new(format!("this host has no group `{group}`"))
                .help("write the name of a group or a group id")
        })?);
        Ok(self)
    }

    /// The same flow from a process that somebody logged in to start.
    #[must_use]
    pub fn logged_in(mut self) -> Self {
        self.interactive = true;
        self
    }

    /// The same flow from a process of a login session that came from this address.
    ///
    /// # Errors
    ///
    /// Not an address.
    pub fn logged_in_from(mut self, address: &str) -> Result<Self, Fault> {
        self.origin = Some(parse_address(address)?);
        Ok(self.logged_in())
    }

    /// The same flow as one of a session that the far end opened.
    ///
    /// # Errors
    ///
    /// A protocol by which sessions are not known to be accepted.
    pub fn accepted(mut self) -> Result<Self, Fault> {
        if self.protocol != Protocol::TCP {
            return Err(Fault::new(format!(
                "sessions are known to be accepted by TCP alone, and not by {}",
                self.protocol
            ))
            .help("what answers datagrams is outbound: ask for it so, with --from-port"));
        }
        self.direction = Direction::Accepted;
        Ok(self)
    }

    /// The same flow from this port of the host, which for a session that it accepts is the
    /// service's.
    ///
    /// # Errors
    ///
    /// A protocol without ports, or port 0.
    pub fn from_port(mut self, port: u16) -> Result<Self, Fault> {
        if !self.protocol.has_ports() {
            return Err(Fault::new(format!(
                "protocol {} has no ports",
                self.protocol
            )));
        }
        if port == 0 {
            return Err(Fault::new("ports are numbers from 1 to 65535"));
        }
        self.near_port = Some(port);
        Ok(self)
    }

    /// The question to a policy.
    #[must_use]
    pub fn question(&self) -> Question<'_> {
        Question {
            cgroup: self.cgroup.as_deref().map(str::as_bytes),
            executable: self.executable.as_deref().map(str::as_bytes),
            is_foreign: false,
            uid: self.uid,
            gid: self.gid,
            interactive: Some(self.interactive),
            origin: self.origin,
            direction: Some(self.direction),
            near_port: match self.direction {
                Direction::Accepted => Some(self.near_port.unwrap_or(0)),
                Direction::Outbound => self.near_port,
            },
            destination: self.destination,
            may_stay: true,
            protocol: self.protocol.0,
            port: self.port,
            time_us: self.time_us,
        }
    }
}
