//! Loading and attaching the programs of hooks: each itself, or one in its place.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, links::FdLink},
};

use super::{
    KernelError, bpf_syscall,
    btf::Types,
    error::with_causes,
    hooks::{Better, Fallback, HOOKS, Hook, HookStatus, INET_SOCK_SET_STATE, Place},
};

/// Loads the programs of all hooks, and says what became of each, and why. `None` if programs were
/// told that `inet_sock_set_state` is seen, and it cannot be loaded: all are to be told otherwise.
pub fn load_all(
    ebpf: &mut Ebpf,
    btf: &Btf,
    types: &Types,
    tcp_state_seen: bool,
) -> Option<Vec<(HookStatus, Option<KernelError>)>> {
    let mut all = Vec::new();
    for hook in HOOKS {
        let loaded = load(ebpf, hook, btf, types);
        if loaded.is_err() && hook.name == INET_SOCK_SET_STATE && tcp_state_seen {
            return None;
        }
        let status = HookStatus {
            name: hook.name,
            attached: loaded.is_ok(),
            without: hook.without,
            partly: loaded.as_ref().ok().and_then(|it| Some((*it)?.without)),
            why: loaded.as_ref().err().map(|error| with_causes(error)),
        };
        all.push((status, loaded.err()));
    }
    Some(all)
}

/// Loads the program of a hook into the kernel, or one in its place; the verifier sees it here.
/// Returns the fallback if it is that.
fn load(
    ebpf: &mut Ebpf,
    hook: &Hook,
    btf: &Btf,
    types: &Types,
) -> Result<Option<Fallback>, KernelError> {
    if load_better(ebpf, hook, btf, types) {
        return Ok(None);
    }
    let error = match load_itself(ebpf, hook, btf) {
        Ok(()) => return Ok(None),
        Err(error) => error,
    };
    let program = hook.fallback.and_then(|fallback| {
        let program = ebpf.program_mut(fallback.function)?;
        Some((fallback, program))
    });
    match program {
        Some((fallback, Program::FEntry(program))) => program
            .load(fallback.function, btf)
            .map(|()| Some(fallback))
            .map_err(|_| error),
        Some((fallback, Program::Iter(program))) => program
            .load("task_file", btf)
            .map(|()| Some(fallback))
            .map_err(|_| error),
        _ => Err(error),
    }
}

/// True if what is better than a hook is in the kernel, maybe for the sake of another hook.
fn load_better(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf, types: &Types) -> bool {
    let has_all = |better: &&Better| better.all_needed().all(|name| types.has_function(name));
    let Some(better) = hook.better.filter(has_all) else {
        return false;
    };
    let Some(Program::FEntry(program)) = ebpf.program_mut(better.function) else {
        return false;
    };
    if program.fd().is_ok() {
        return true;
    }
    // Some kernels load it and cannot attach it, which is better known before it is relied on.
    let is_of_use = program.load(better.function, btf).is_ok()
        && program.attach().is_ok_and(|id| program.detach(id).is_ok());
    if !is_of_use && program.fd().is_ok() {
        drop(program.unload());
    }
    is_of_use
}

fn load_itself(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> Result<(), KernelError> {
    let program = ebpf.program_mut(hook.name).ok_or_else(|| missing(hook))?;
    match (program, hook.place) {
        (Program::BtfTracePoint(program), _) => program.load(hook.name, btf),
        (Program::FEntry(program), Place::Function) => program.load(hook.name, btf),
        (Program::Iter(program), Place::Iterator(kind)) => program.load(kind, btf),
        (Program::CgroupSkb(program), _) => program.load(),
        (Program::CgroupSock(program), _) => program.load(),
        (Program::CgroupSockAddr(program), _) => program.load(),
        (Program::CgroupSockopt(program), _) => program.load(),
        (Program::CgroupDevice(program), _) => program.load(),
        (Program::SchedClassifier(program), Place::Uplink) => program.load(),
        _ => return Err(missing(hook)),
    }
    .map_err(|error| KernelError::refused(format!("load program {}", hook.name), error))
}

/// A program that was loaded.
pub fn program<'a>(ebpf: &'a Ebpf, hook: &Hook) -> Result<BorrowedFd<'a>, KernelError> {
    let program = ebpf.program(hook.name).ok_or_else(|| missing(hook))?;
    let fd = program
        .fd()
        .map_err(|error| KernelError::failed(format!("use program {}", hook.name), error))?;
    Ok(fd.as_fd())
}

/// Attaches one program and pins its link, so that it stays when this agent ends. False
/// if it is not attached by a link, or not here: uplinks are attached one by one, as they
/// come. `link` is where the link of a hook is pinned.
pub fn attach(
    ebpf: &mut Ebpf,
    hook: &Hook,
    cgroup: BorrowedFd<'_>,
    link: impl Fn(&Hook) -> PathBuf,
) -> Result<bool, KernelError> {
    let pin = &link(hook);
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        KernelError::failed(format!("attach program {}", hook.name), error)
    };
    let unpinned = |error: Box<dyn std::error::Error + Send + Sync>| {
        KernelError::failed(format!("pin link {}", pin.display()), error)
    };
    match hook.place {
        Place::Iterator(_) | Place::Uplink => return Ok(false),
        Place::Cgroup => {
            let program = program(ebpf, hook)?;
            let link = bpf_syscall::attach_to_cgroup(program, cgroup, attach_type(hook.name))
                .map_err(|error| failed(error.into()))?;
            bpf_syscall::pin(link.as_fd(), pin).map_err(|error| unpinned(error.into()))?;
        }
        Place::Tracepoint | Place::Function => match attached_before(ebpf, hook) {
            Some(other) => {
                let link =
                    bpf_syscall::open_pin(&link(other)).map_err(|error| failed(error.into()))?;
                bpf_syscall::pin(link.as_fd(), pin).map_err(|error| unpinned(error.into()))?;
            }
            None => {
                let link = attach_to_kernel(ebpf, hook).map_err(failed)?;
                link.pin(pin).map_err(|error| unpinned(error.into()))?;
            }
        },
    }
    Ok(true)
}

/// The hook before this one for whose sake the program that does the work of both is attached.
fn attached_before(ebpf: &Ebpf, hook: &Hook) -> Option<&'static Hook> {
    let better = hook.better?.function;
    let is_loaded = matches!(
        ebpf.program(better), Some(Program::FEntry(program)) if program.fd().is_ok()
    );
    let has_it = |it: &&Hook| it.better.is_some_and(|it| it.function == better);
    let first = HOOKS.iter().find(has_it)?;
    (is_loaded && first.name != hook.name).then_some(first)
}

/// Attaches the program of a tracepoint or function, or what is in its place, whichever was
/// loaded.
pub(super) fn attach_to_kernel(
    ebpf: &mut Ebpf,
    hook: &Hook,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    for name in hook.programs() {
        match ebpf.program_mut(name) {
            Some(Program::BtfTracePoint(program)) if program.fd().is_ok() => {
                let id = program.attach()?;
                return Ok(program.take_link(id)?.into());
            }
            Some(Program::FEntry(program)) if program.fd().is_ok() => {
                let id = program.attach()?;
                return Ok(program.take_link(id)?.into());
            }
            _ => {}
        }
    }
    Err(missing(hook).into())
}

/// The place in a control group of the program with this name: `enum bpf_attach_type`.
pub(super) fn attach_type(name: &str) -> u32 {
    match name {
        "ingress" => 0,
        "egress" => 1,
        "sock_create" => 2,
        "device_open" => 6,
        "connect4" => 10,
        "connect6" => 11,
        "sendmsg4" => 14,
        "sendmsg6" => 15,
        "setsockopt" => 22,
        "sock_release" => 34,
        _ => unreachable!("{name} has no place in a control group"),
    }
}

fn missing(hook: &Hook) -> KernelError {
    KernelError::failed(
        format!("find program {} in the embedded object", hook.name),
        "the build is incomplete",
    )
}
