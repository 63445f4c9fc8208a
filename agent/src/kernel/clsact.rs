//! Attaching a program to the exit of an interface before Linux 6.6, which has no links
//! for that: a filter of the clsact qdisc, by netlink.
//!
//! A filter stays when whoever made it ends, and goes only when it is removed. It is
//! named by its priority, which is Trefoil's, and its handle, which is the instance that
//! made it; later ones put their programs into it.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{
    KernelError, RouteSocket,
    netlink::{NLM_F_ACK, NLM_F_DUMP, u32_at},
};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
pub const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
pub const RTM_GETTFILTER: u16 = 46;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const NLA_F_NESTED: u16 = 0x8000;

/// Where the qdisc is, and its two ends.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
pub const EGRESS: u32 = 0xffff_fff3;

/// Behind most others, so that it sees what is sent in the end.
pub const PRIORITY: u32 = 49_000;

/// Attaches a program. True if the qdisc was not there and is now.
pub fn attach(
    routes: &mut RouteSocket,
    program: BorrowedFd<'_>,
    name: &str,
    interface: u32,
    instance: u32,
) -> Result<bool, KernelError> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut qdisc = message(interface, CLSACT_HANDLE, CLSACT, 0);
    attribute(&mut qdisc, TCA_KIND, b"clsact\0");
    let made = match routes.ask(RTM_NEWQDISC, flags, &qdisc, |_, _| {}) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => false,
        Err(error) => return Err(KernelError::failed("make a clsact qdisc", error)),
    };
    routes
        .ask(
            RTM_NEWTFILTER,
            flags,
            &filter(program, name, interface, instance),
            |_, _| {},
        )
        .map_err(|error| KernelError::failed("make a filter of clsact", error))?;
    Ok(made)
}

/// Puts a program in the place of that of a filter. The kernel swaps them: each frame is
/// seen by one of the two. False if there is no such filter.
pub fn replace(
    routes: &mut RouteSocket,
    program: BorrowedFd<'_>,
    name: &str,
    interface: u32,
    handle: u32,
) -> Result<bool, KernelError> {
    let message = filter(program, name, interface, handle);
    let flags = NLM_F_ACK | NLM_F_REPLACE;
    match routes.ask(RTM_NEWTFILTER, flags, &message, |_, _| {}) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(KernelError::failed("replace a filter of clsact", error)),
    }
}

/// The message that makes a filter, or says what is in it.
fn filter(program: BorrowedFd<'_>, name: &str, interface: u32, handle: u32) -> Vec<u8> {
    let mut options = Vec::new();
    attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    attribute(&mut options, TCA_BPF_NAME, format!("{name}\0").as_bytes());
    attribute(
        &mut options,
        TCA_BPF_FLAGS,
        &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes(),
    );
    let mut filter = message(interface, handle, EGRESS, info());
    attribute(&mut filter, TCA_KIND, b"bpf\0");
    attribute(&mut filter, TCA_OPTIONS | NLA_F_NESTED, &options);
    filter
}

/// True if there is no such filter, qdisc or interface.
pub fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
    )
}

/// Removes a filter, and the qdisc if `with_qdisc` and nobody else has put a
/// filter there. A filter or qdisc that is gone already is no error.
pub fn remove(
    routes: &mut RouteSocket,
    interface: u32,
    handle: u32,
    with_qdisc: bool,
) -> Result<(), KernelError> {
    let mut filter = message(interface, handle, EGRESS, info());
    attribute(&mut filter, TCA_KIND, b"bpf\0");
    match routes.ask(RTM_DELTFILTER, NLM_F_ACK, &filter, |_, _| {}) {
        Err(error) if !is_gone(&error) => {
            return Err(KernelError::failed("remove a filter of clsact", error));
        }
        _ => {}
    }
    if !with_qdisc {
        return Ok(());
    }
    for end in [INGRESS, EGRESS] {
        match handles(routes, interface, end, 0) {
            Ok(handles) if handles.is_empty() => {}
            _ => return Ok(()),
        }
    }
    let mut qdisc = message(interface, CLSACT_HANDLE, CLSACT, 0);
    attribute(&mut qdisc, TCA_KIND, b"clsact\0");
    match routes.ask(RTM_DELQDISC, NLM_F_ACK, &qdisc, |_, _| {}) {
        Err(error) if !is_gone(&error) => Err(KernelError::failed("remove a clsact qdisc", error)),
        _ => Ok(()),
    }
}

/// True if there is such a filter.
pub fn is_attached(
    routes: &mut RouteSocket,
    interface: u32,
    handle: u32,
) -> Result<bool, KernelError> {
    handles(routes, interface, EGRESS, info())
        .map(|handles| handles.contains(&handle))
        .or_else(|error| {
            if is_gone(&error) {
                Ok(false)
            } else {
                Err(error)
            }
        })
        .map_err(|error| KernelError::failed("list filters of clsact", error))
}

/// Handles of the filters at one end of the qdisc; of one priority, unless `info` is 0.
fn handles(
    routes: &mut RouteSocket,
    interface: u32,
    end: u32,
    info: u32,
) -> std::io::Result<Vec<u32>> {
    let mut handles = Vec::new();
    let all = message(interface, 0, end, info);
    routes.ask(RTM_GETTFILTER, NLM_F_DUMP, &all, |kind, body| {
        // A chain without filters is listed as well, with no handle.
        let handle = u32_at(body, 8).filter(|handle| *handle != 0);
        handles.extend(handle.filter(|_| kind == RTM_NEWTFILTER));
    })?;
    Ok(handles)
}

/// `tcm_info` of the filter: its priority, and that it is for all protocols.
fn info() -> u32 {
    const ETH_P_ALL: u16 = 3;
    PRIORITY << 16 | u32::from(ETH_P_ALL.to_be())
}

/// `struct tcmsg`
pub fn message(interface: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    for word in [interface, handle, parent, info] {
        message.extend(word.to_ne_bytes());
    }
    message
}

pub fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    const HEADER: usize = 4;
    to.extend(((HEADER + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(align_of::<u32>()), 0);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use aya::{EbpfLoader, programs::SchedClassifier};
    use trefoil_lab::{namespace::Namespace, program::pass_on};

    use super::*;

    /// Returns the output of `tc` about the loopback interface.
    fn shown(place: &Namespace, words: &[&str]) -> String {
        let mut tc = Command::new("tc");
        tc.args(words);
        pass_on(&mut tc, Some(place), None, None).unwrap();
        let output = tc.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn instances_stand_beside_each_other_and_leave_nothing() {
        const LOOPBACK: u32 = 1;
        const QDISC: [&str; 4] = ["qdisc", "show", "dev", "lo"];
        const FILTERS: [&str; 5] = ["filter", "show", "dev", "lo", "egress"];
        let place = Namespace::new("filtered").unwrap();
        place.ip("link set lo up").unwrap();
        let mut ebpf = EbpfLoader::new().load(super::super::load::OBJECT).unwrap();
        let program = ebpf.program_mut("judge_question").unwrap();
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
        let fd = program.fd().unwrap().try_clone().unwrap();
        let mut routes = place.enter(|| Ok(RouteSocket::open()?)).unwrap();
        let fd = std::os::fd::AsFd::as_fd(&fd);
        assert!(attach(&mut routes, fd, "hook", LOOPBACK, 7).unwrap());
        assert!(!attach(&mut routes, fd, "hook", LOOPBACK, 8).unwrap());
        assert!(!replace(&mut routes, fd, "other", LOOPBACK, 9).unwrap());
        assert!(replace(&mut routes, fd, "other", LOOPBACK, 8).unwrap());
        let filters = shown(&place, &FILTERS);
        assert!(filters.contains("pref 49000 bpf chain 0 handle 0x7 hook direct-action"));
        assert!(filters.contains("handle 0x8 other"), "{filters}");
        assert!(
            !filters.contains("0x9") && !filters.contains("0x8 hook"),
            "{filters}"
        );

        remove(&mut routes, LOOPBACK, 7, true).unwrap();
        let filters = shown(&place, &FILTERS);
        assert!(
            !filters.contains("handle 0x7") && filters.contains("handle 0x8"),
            "{filters}"
        );
        let found = [7, 8].map(|handle| is_attached(&mut routes, LOOPBACK, handle).unwrap());
        assert_eq!(found, [false, true]);
        remove(&mut routes, LOOPBACK, 8, true).unwrap();
        assert!(!shown(&place, &QDISC).contains("clsact"));
        assert!(!is_attached(&mut routes, LOOPBACK, 8).unwrap());
        // Removal succeeds if the hook is gone already, and leaves a qdisc that is not ours.
        remove(&mut routes, LOOPBACK, 8, true).unwrap();
        shown(&place, &["qdisc", "add", "dev", "lo", "clsact"]);
        assert!(!attach(&mut routes, fd, "hook", LOOPBACK, 9).unwrap());
        remove(&mut routes, LOOPBACK, 9, false).unwrap();
        assert_eq!(shown(&place, &FILTERS), "");
        assert!(shown(&place, &QDISC).contains("clsact"));
        assert!(remove(&mut routes, 99, 1, true).is_ok());
    }
}
