//! Whether this kernel has what the hooks need: by its type information, or by loading each program.
//!
//! Nothing of it counts, judges or stays: the programs have tables of their own, in which no
//! instance is in force.

use aya::EbpfLoader;

use super::{
    KernelError, TableSizes, attach,
    error::with_causes,
    hooks::{HOOKS, Hook, HookStatus, Place},
    load::{Globals, OBJECT, kernel_types, sizes},
    offsets,
};

/// Whether this kernel has what a hook needs.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HookSupport {
    /// As in [`Hook`].
    pub name: &'static str,
    /// True if it can be used, and nothing that covers less stands in its place.
    pub supported: bool,
    /// True if a promise needs it, and nothing stands in its place.
    pub breaks_promise: bool,
    /// Coverage that is missing without it, by its fallback too.
    pub without: Option<&'static str>,
    /// Why it cannot be used, where that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Looks up every hook in the kernel's type information. Without any, nothing is
/// supported. A kernel may refuse what it has.
pub fn support(watches_uplinks: bool) -> Vec<HookSupport> {
    let types = offsets::open().ok();
    let has = |name: &str| types.as_ref().is_some_and(|types| types.has_function(name));
    let support = |hook: &Hook| {
        let supported = match hook.place {
            Place::Tracepoint => has(&format!("btf_trace_{}", hook.name)),
            Place::Function => has(hook.name),
            Place::Iterator(kind) => has(&format!("bpf_iter_{kind}")),
            Place::Cgroup => has("cgroup_bpf_attach") || has("cgroup_bpf_link_attach"),
            // clsact is older than any kernel with type information.
            Place::Uplink => types.is_some(),
        };
        let supported = supported && hook.calls.is_none_or(has)
            || hook
                .better
                .is_some_and(|better| better.all_needed().all(has));
        let fallback = hook.fallback.filter(|fallback| {
            let place = match hook.place {
                Place::Iterator(_) => "bpf_iter_task_file",
                _ => fallback.function,
            };
            has(place) && fallback.calls.is_none_or(has)
        });
        HookSupport {
            name: hook.name,
            supported,
            breaks_promise: !supported && fallback.is_none() && hook.is_promised(watches_uplinks),
            without: fallback.map_or(hook.without, |fallback| Some(fallback.without)),
            why: None,
        }
    };
    HOOKS.iter().map(support).collect()
}

/// Loads every program, and attaches for a moment what some kernels load and do not attach, as a
/// start of the agent does. Takes the rights that a start takes, and as long.
///
/// Programs for control groups and uplinks are not attached: loading them decides, and the
/// traffic there is somebody's.
pub fn tried_support(watches_uplinks: bool) -> Result<Vec<HookSupport>, KernelError> {
    let tried = match try_all(true)? {
        Some(all) => all,
        None => try_all(false)?.unwrap_or_default(),
    };
    let support = |status: HookStatus| HookSupport {
        name: status.name,
        supported: status.attached && status.partly.is_none(),
        breaks_promise: status.breaks_promise(watches_uplinks),
        without: status.partly.or(status.without),
        why: status.why,
    };
    Ok(tried.into_iter().map(support).collect())
}

/// See [`attach::load_all`].
fn try_all(tcp_state_seen: bool) -> Result<Option<Vec<HookStatus>>, KernelError> {
    const TABLES: TableSizes = TableSizes {
        events_bytes: 1 << 16,
        flows: 1,
        uplink_flows: 1,
        remembered: 1,
        uplinks: 1,
        ended: 1,
        processes: 1,
        executables: 1,
        cgroups: 1,
    };
    let types = offsets::open()?;
    let btf = kernel_types()?;
    let globals = Globals::of_this_kernel(&types, tcp_state_seen)?;
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    for (name, size) in sizes(&TABLES) {
        loader.map_max_entries(name, size);
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| KernelError::failed("load the kernel programs' maps", error))?;
    let Some(mut loaded) = attach::load_all(&mut ebpf, &btf, &types, tcp_state_seen) else {
        return Ok(None);
    };
    for (hook, (status, _)) in HOOKS.iter().zip(&mut loaded) {
        let is_attached = matches!(hook.place, Place::Tracepoint | Place::Function);
        if !is_attached || !status.attached {
            continue;
        }
        // The link goes with its last descriptor.
        if let Err(error) = attach::attach_to_kernel(&mut ebpf, hook) {
            let error = KernelError::failed(format!("attach program {}", hook.name), error);
            status.attached = false;
            status.why = Some(with_causes(&error));
        }
    }
    let all = loaded.into_iter().map(|(status, _)| status);
    Ok(Some(all.collect()))
}
