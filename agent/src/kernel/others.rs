//! Other programs and filters at the exit of an interface: what stands behind the hook may
//! change or send elsewhere what was judged, and what lets a frame pass for good before it
//! keeps the frame from it.
//!
//! Lists them; which are there is not for this file to say anything about.

use std::{collections::BTreeSet, io, os::fd::AsFd as _};

use super::{
    KernelError, RouteSocket, bpf_syscall, clsact,
    netlink::{NLM_F_DUMP, attributes, u32_at},
    pins::PinDir,
    trace,
    uplink_hook::{FilterPin, is_uplink_pin},
};

/// Others at the exit of an interface, each as people read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that a frame passes before the hook.
    pub before: Vec<String>,
    /// Those that it passes behind the hook.
    pub behind: Vec<String>,
}

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTCLASS: u16 = 40;
const RTM_GETTCLASS: u16 = 42;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
/// Bytes of `struct tcmsg`.
const BODY: usize = 20;

impl Others {
    /// Lists them for an interface of this network namespace. Needs CAP_NET_ADMIN; names of
    /// programs that are attached without a filter CAP_SYS_ADMIN, else there is their number.
    pub fn look(
        routes: &mut RouteSocket,
        pins: &PinDir,
        interface: u32,
    ) -> Result<Self, KernelError> {
        let own = own_programs(pins, interface);
        let traces = trace::running(pins);
        let failed = |error: io::Error| {
            KernelError::failed(
                format!("list what is at the exit of interface {interface}"),
                error,
            )
        };
        let mut found = Self::default();
        let programs = bpf_syscall::tcx_egress_programs(interface).map_err(failed)?;
        let place = programs.iter().position(|id| own.contains(id));
        for (at, id) in programs.iter().enumerate() {
            match place {
                Some(place) if at > place => found.behind.push(program(*id)),
                _ if own.contains(id) || traces.contains(id) => {}
                _ => found.before.push(program(*id)),
            }
        }
        // Filters come after all programs that are attached without one.
        let is_last = place.is_some();
        for filter in filters(routes, interface, clsact::EGRESS).map_err(failed)? {
            let is_own = filter.program.is_some_and(|id| own.contains(&id));
            let comes_before = filter.chain == 0 && filter.priority < clsact::PRIORITY;
            if is_own {
                continue;
            }
            if !is_last && comes_before {
                found.before.push(filter.text("clsact"));
            } else if filter.changes() {
                found.behind.push(filter.text("clsact"));
            }
        }
        for (kind, parent) in queues(routes, interface).map_err(failed)? {
            let filters = filters(routes, interface, parent).map_err(failed)?;
            let filters = filters.iter().filter(|filter| filter.changes());
            found
                .behind
                .extend(filters.map(|filter| filter.text(&kind)));
        }
        Ok(found)
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.behind.is_empty()
    }
}

/// Numbers of the programs that agents of this directory have at the exit of an interface.
fn own_programs(pins: &PinDir, interface: u32) -> BTreeSet<u32> {
    let of_pin = |(instance, name): (u32, String)| {
        if !is_uplink_pin(&name, interface) {
            return None;
        }
        let pinned = bpf_syscall::open_pin(&pins.link(instance, &name)).ok()?;
        if FilterPin::parse(&name).is_some() {
            return Some(bpf_syscall::identity(pinned.as_fd()).ok()?.id);
        }
        Some(bpf_syscall::link_info(pinned.as_fd()).ok()?.program)
    };
    pins.pinned_links().into_iter().filter_map(of_pin).collect()
}

fn program(id: u32) -> String {
    match bpf_syscall::program_name(id) {
        Ok((name, tag)) => format!("BPF program {name} (id {id}, tag {tag})"),
        Err(_) => format!("a BPF program (id {id})"),
    }
}

/// A filter of traffic control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    kind: String,
    chain: u32,
    priority: u32,
    /// Of a BPF program, if it is one.
    program: Option<u32>,
    name: Option<String>,
    /// Kinds of its actions; of those that send elsewhere with the number of the interface.
    actions: Vec<(String, Option<u32>)>,
    /// Where its actions are said is not known here.
    is_unknown: bool,
}

impl Filter {
    /// True if it may change a frame or send it elsewhere. A program that lets pass, drops,
    /// limits, marks or copies to user space does not.
    fn changes(&self) -> bool {
        const HARMLESS: [&str; 7] = [
            "gact", "police", "sample", "skbedit", "connmark", "csum", "simple",
        ];
        let acts = |(kind, _): &(String, Option<u32>)| !HARMLESS.contains(&kind.as_str());
        self.kind == "bpf" || self.is_unknown || self.actions.iter().any(acts)
    }

    fn text(&self, at: &str) -> String {
        let actions = self.actions.iter().map(|(kind, target)| match target {
            Some(index) => format!("{kind} to {}", interface_name(*index)),
            None => kind.clone(),
        });
        let actions: Vec<String> = actions.collect();
        let mut text = format!("{} filter", self.kind);
        if let Some(name) = &self.name {
            text += &format!(" {name}");
        }
        if let Some(id) = self.program {
            text += &format!(" (program {id})");
        }
        text += &format!(" of {at}, chain {}, priority {}", self.chain, self.priority);
        match actions.as_slice() {
            [] => {}
            actions => text += &format!(", action {}", actions.join(", ")),
        }
        text
    }
}

fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("interface {index}"))
}

/// Filters at a place in traffic control; none if there is no such place.
fn filters(routes: &mut RouteSocket, interface: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    let all = clsact::message(interface, 0, parent, 0);
    let asked = routes.ask(clsact::RTM_GETTFILTER, NLM_F_DUMP, &all, |kind, body| {
        if kind == clsact::RTM_NEWTFILTER {
            found.extend(filter(body));
        }
    });
    match asked {
        Err(error) if clsact::is_gone(&error) => Ok(Vec::new()),
        asked => asked.map(|()| found),
    }
}

fn filter(body: &[u8]) -> Option<Filter> {
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_ID: u16 = 11;
    // A chain, or a table of filters, is listed as well, with no handle.
    u32_at(body, 8).filter(|handle| *handle != 0)?;
    let mut filter = Filter {
        priority: u32_at(body, 16)? >> 16,
        ..Filter::default()
    };
    let mut options: &[u8] = &[];
    for (kind, value) in attributes(body.get(BODY..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_OPTIONS => options = value,
            TCA_CHAIN => filter.chain = u32_at(value, 0)?,
            _ => {}
        }
    }
    let actions_at = match filter.kind.as_str() {
        "bpf" | "cgroup" => 1,
        "matchall" => 2,
        "basic" | "flower" => 3,
        "fw" => 4,
        "route" => 6,
        "u32" => 7,
        "flow" => 9,
        _ => {
            filter.is_unknown = true;
            return Some(filter);
        }
    };
    for (kind, value) in attributes(options) {
        if kind == actions_at {
            filter
                .actions
                .extend(attributes(value).filter_map(|(_, value)| action(value)));
        } else if filter.kind == "bpf" && kind == TCA_BPF_NAME {
            filter.name = Some(text(value));
        } else if filter.kind == "bpf" && kind == TCA_BPF_ID {
            filter.program = u32_at(value, 0);
        }
    }
    Some(filter)
}

/// Kind of an action, and where it sends to.
fn action(value: &[u8]) -> Option<(String, Option<u32>)> {
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_MIRRED_PARMS: u16 = 2;
    /// In `struct tc_mirred`.
    const INTERFACE: usize = 24;
    let find = |wanted, bytes| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let kind = text(find(TCA_ACT_KIND, value)?.1);
    let target = (kind == "mirred").then(|| {
        let options = find(TCA_ACT_OPTIONS, value)?.1;
        u32_at(find(TCA_MIRRED_PARMS, options)?.1, INTERFACE)
    });
    Some((kind, target.flatten()))
}

/// Queues of an interface that may have filters, and their classes that may: kind and number.
fn queues(routes: &mut RouteSocket, interface: u32) -> io::Result<Vec<(String, u32)>> {
    const CLASSES_HAVE_FILTERS: [&str; 2] = ["htb", "hfsc"];
    let mut found = Vec::new();
    let mut each = |wanted: u16, kind: u16, body: &[u8]| {
        let is_of_it = u32_at(body, 4) == Some(interface) && kind == wanted;
        let handle = u32_at(body, 8).filter(|_| is_of_it);
        let mut attributes = attributes(body.get(BODY..).unwrap_or_default());
        let kind = attributes.find(|(kind, _)| *kind == TCA_KIND);
        let kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
        // One that the kernel made by itself has no handle, and no filters.
        let is_plain = handle == Some(0) || ["clsact", "ingress"].contains(&kind.as_str());
        found.extend(handle.filter(|_| !is_plain).map(|handle| (kind, handle)));
    };
    let all = clsact::message(interface, 0, 0, 0);
    routes.ask(RTM_GETQDISC, NLM_F_DUMP, &all, |kind, body| {
        each(RTM_NEWQDISC, kind, body);
    })?;
    let mut classes = Vec::new();
    if found
        .iter()
        .any(|(kind, _)| CLASSES_HAVE_FILTERS.contains(&kind.as_str()))
    {
        routes.ask(RTM_GETTCLASS, NLM_F_DUMP, &all, |kind, body| {
            let class = u32_at(body, 8).filter(|_| kind == RTM_NEWTCLASS);
            classes.extend(class.map(|class| ("a class".to_owned(), class)));
        })?;
    }
    found.extend(classes);
    Ok(found)
}

fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        clsact::attribute(&mut bytes, kind, value);
        bytes
    }

    /// A filter as the kernel lists it, with one action.
    fn listed(kind: &str, actions_at: u16, action: &str, options: &[u8]) -> Filter {
        let act = [
            attribute(1, format!("{action}\0").as_bytes()),
            attribute(2, options),
        ];
        let acts = attribute(actions_at, &attribute(1, &act.concat()));
        let mut body = clsact::message(7, 1, clsact::EGRESS, 49_152 << 16 | 3);
        body.extend(attribute(TCA_KIND, format!("{kind}\0").as_bytes()));
        body.extend(attribute(TCA_CHAIN, &4_u32.to_ne_bytes()));
        body.extend(attribute(TCA_OPTIONS, &acts));
        filter(&body).unwrap()
    }

    #[test]
    fn what_changes_or_sends_elsewhere_is_told_with_where() {
        let mut mirred = vec![0; 28];
        mirred[24..].copy_from_slice(&1_u32.to_ne_bytes());
        let redirects = listed("matchall", 2, "mirred", &attribute(2, &mirred));
        assert!(redirects.changes());
        assert_eq!(
            redirects.text("clsact"),
            "matchall filter of clsact, chain 4, priority 49152, action mirred to lo"
        );
        assert!(listed("flower", 3, "pedit", &[]).changes());
        assert!(listed("u32", 7, "nat", &[]).changes());
        assert!(!listed("u32", 7, "gact", &[]).changes());
        assert!(!listed("basic", 3, "police", &[]).changes());
        assert!(listed("bpf", 1, "gact", &[]).changes());
        assert!(listed("tomorrow", 1, "gact", &[]).changes());
    }

    #[test]
    fn a_message_that_ends_early_says_nothing() {
        for len in 0..BODY {
            assert_eq!(filter(&vec![1; len]), None);
        }
        assert_eq!(action(&[]), None);
    }
}
