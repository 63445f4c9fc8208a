//! Contenders of the comparison: each can be switched on and off within milliseconds, on the
//! same namespaces and the same control group.
//!
//! Trefoil is an agent that was started, loaded its policy and attached; then it is killed
//! and its pins are removed, which leaves nothing attached, and the benchmark attaches the same
//! programs with the same tables again whenever it is their turn. So "nothing" is without
//! any program, tracepoints included. The agent's own share is measured in `agent.rs`, with an
//! agent that runs.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{CgroupSkb, CgroupSock, SchedClassifier};
use nix::sys::signal::Signal;
use trefoil_lab::attach::{Attachment, CGROUP_EGRESS, CGROUP_INGRESS, Place, SOCK_CREATE, attach};
use trefoil_lab::kernel::{MapInfo, ProgramInfo};
use trefoil_lab::program::Program;
use trefoil_lab::{Lab, places};

/// Nothing, and nothing once more: what differs between them is the machine's.
pub const NOTHING: &str = "nothing";
/// See [`NOTHING`].
pub const CONTROL: &str = "control";
/// See `agent-ebpf/src/bin/contenders.rs`.
pub const EMPTY: &str = "empty";
/// As an operator has it: the policy of these figures.
pub const WHOLE: &str = "trefoil-enforce-large-uplink";
/// Prefixes in deny list and set.
const N_DENIED: u32 = 100_000;

/// Names of all but nothing.
pub fn names() -> Vec<String> {
    let others = [
        EMPTY,
        "accounting",
        "deny-list",
        "both",
        "floor",
        "nftables",
        "conntrack",
    ];
    let setups = Setup::all().into_iter().map(Setup::name);
    others
        .map(str::to_owned)
        .into_iter()
        .chain(setups)
        .collect()
}

/// One of those that are compared.
pub struct Contender {
    /// In the results.
    pub name: String,
    /// For people.
    pub title: String,
    /// Programs, in the order in which they are attached.
    pub attachments: Vec<Attachment>,
    events: Option<RingBuf<MapData>>,
    /// Commands of nft that switch it on and off.
    nft: Option<[PathBuf; 2]>,
}

impl Contender {
    /// Nothing.
    pub fn nothing(name: &str, title: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            attachments: Vec::new(),
            events: None,
            nft: None,
        }
    }

    /// With programs.
    pub fn with(name: &str, title: &str, attachments: Vec<Attachment>) -> Self {
        Self {
            attachments,
            ..Self::nothing(name, title)
        }
    }

    /// Switches it on, until [`Self::off`] gets what this returns.
    pub fn on(&self, lab: &Lab) -> Vec<OwnedFd> {
        if let Some([on, _]) = &self.nft {
            nft(lab, on);
        }
        attach(&self.attachments, &lab.cgroup, &lab.host).unwrap()
    }

    /// Switches it off, and throws away what it had to tell.
    pub fn off(&mut self, lab: &Lab, links: Vec<OwnedFd>) {
        drop(links);
        if let Some([_, off]) = &self.nft {
            nft(lab, off);
        }
        self.drain();
    }

    /// Throws away what it had to tell, as an agent would take it.
    pub fn drain(&mut self) {
        if let Some(events) = &mut self.events {
            while events.next().is_some() {}
        }
    }

    /// Returns the kernel's current information about its programs.
    pub fn programs(&self) -> Vec<ProgramInfo> {
        let programs = self.attachments.iter();
        programs.map(|program| program.info().unwrap()).collect()
    }
}

fn nft(lab: &Lab, commands: &Path) {
    let nft = Program::new("nft", &lab.host, None, None).unwrap();
    nft.args([Path::new("-f"), commands])
        .run()
        .unwrap()
        .success()
        .unwrap();
}

/// Those that are no Trefoil and that `wants` names. `object` has their programs, which it
/// returns with them: they are gone without it.
pub fn others(lab: &Lab, object: &Path, wants: impl Fn(&str) -> bool) -> (Vec<Contender>, Ebpf) {
    let mut ebpf = Ebpf::load(&fs::read(object).unwrap()).unwrap();
    let mut denied: LpmTrie<_, [u8; 4], u32> = ebpf.take_map("DENIED").unwrap().try_into().unwrap();
    for number in 0..N_DENIED {
        denied
            .insert(&Key::new(32, denied_address(number)), 1, 0)
            .unwrap();
    }
    let exits: Vec<_> = ["to-gateway", "to-peer"]
        .map(|name| Place::Exit(interface(lab, name)))
        .into();
    let one = |place| vec![place];
    let (egress, ingress) = (one(CGROUP_EGRESS), one(CGROUP_INGRESS));
    let sets = [
        (EMPTY, "an empty program", vec![("empty", &egress)]),
        (
            "accounting",
            "accounting as systemd does it",
            vec![("account_ingress", &ingress), ("account_egress", &egress)],
        ),
        (
            "deny-list",
            "a deny list of 100,000 as systemd does it",
            vec![("deny_ingress", &ingress), ("deny_egress", &egress)],
        ),
        (
            "both",
            "both, as systemd does them",
            vec![("both_ingress", &ingress), ("both_egress", &egress)],
        ),
        (
            "floor",
            "the floor: tags and counts at two hooks",
            vec![
                ("floor_create", &one(SOCK_CREATE)),
                ("floor_egress", &egress),
                ("floor_uplink", &exits),
            ],
        ),
    ]
    .map(|(name, title, programs)| {
        let mut attachments = Vec::new();
        for (program, places) in programs {
            for place in places {
                attachments.push(load(&mut ebpf, program, *place));
            }
        }
        Contender::with(name, title, attachments)
    });
    let mut all: Vec<_> = sets.into_iter().filter(|it| wants(&it.name)).collect();
    if wants("nftables") {
        all.push(nftables(lab));
    }
    if wants("conntrack") {
        all.push(conntrack(lab));
    }
    (all, ebpf)
}

fn load(ebpf: &mut Ebpf, name: &str, place: Place) -> Attachment {
    let program = ebpf.program_mut(name).unwrap();
    if program.fd().is_err() {
        match place {
            Place::Exit(_) => <&mut SchedClassifier>::try_from(&mut *program)
                .unwrap()
                .load(),
            SOCK_CREATE => <&mut CgroupSock>::try_from(&mut *program).unwrap().load(),
            _ => <&mut CgroupSkb>::try_from(&mut *program).unwrap().load(),
        }
        .unwrap();
    }
    Attachment::new(program.fd().unwrap().as_fd(), place).unwrap()
}

/// Of a network that nothing is sent to.
fn denied_address(number: u32) -> [u8; 4] {
    (u32::from_be_bytes([10, 0, 0, 0]) + number * 8).to_be_bytes()
}

fn interface(lab: &Lab, name: &str) -> u32 {
    let index = lab
        .host
        .enter(|| Ok(nix::net::if_::if_nametoindex(name)?))
        .unwrap();
    assert_ne!(index, 0);
    index
}

/// A table that sleeps until it is its turn.
fn nftables(lab: &Lab) -> Contender {
    let mut table = "table ip bench {\nflags dormant\nset denied {\ntype ipv4_addr\n\
                     flags interval\nelements = { "
        .to_owned();
    for number in 0..N_DENIED {
        let [a, b, c, d] = denied_address(number);
        write!(table, "{a}.{b}.{c}.{d}/30, ").unwrap();
    }
    table.push_str(
        "}\n}\n\
         chain out {\ntype filter hook output priority 0; policy accept\n\
         ip daddr @denied drop\n}\n\
         chain through {\ntype filter hook forward priority 0; policy accept\n\
         ip daddr @denied drop\n}\n}\n",
    );
    nft(lab, &file(lab, "set.nft", &table));
    let on = file(lab, "set-on.nft", "add table ip bench\n");
    let off = "add table ip bench { flags dormant; }\n";
    Contender {
        nft: Some([on, file(lab, "set-off.nft", off)]),
        ..Contender::nothing("nftables", "nftables, a set of 100,000")
    }
}

/// A rule that asks for the state of connections, which has the kernel follow them.
fn conntrack(lab: &Lab) -> Contender {
    lab.host
        .enter(|| Ok(fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1")?))
        .unwrap();
    let table = "table ip follow {\n\
                 chain out {\ntype filter hook output priority 0; policy accept\n\
                 ct state established accept\n}\n\
                 chain through {\ntype filter hook forward priority 0; policy accept\n\
                 ct state established accept\n}\n}\n";
    let on = file(lab, "follow-on.nft", table);
    let off = file(lab, "follow-off.nft", "delete table ip follow\n");
    Contender {
        nft: Some([on, off]),
        ..Contender::nothing("conntrack", "conntrack with accounting")
    }
}

fn file(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let file = lab.file(name);
    fs::write(&file, text).unwrap();
    file
}

/// All countries, and a policy that tells them apart.
pub struct Large {
    /// The file with all their networks.
    pub table: &'static str,
    /// See `large.rs` of the benchmark of policies.
    pub policy: String,
}

/// A way to set up Trefoil.
#[derive(Clone, Copy)]
pub struct Setup {
    enforce: bool,
    large: bool,
    uplink: bool,
}

impl Setup {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for large in [false, true] {
            for enforce in [false, true] {
                for uplink in [false, true] {
                    all.push(Self {
                        enforce,
                        large,
                        uplink,
                    });
                }
            }
        }
        all
    }

    /// In the results.
    pub fn name(self) -> String {
        let mode = if self.enforce { "enforce" } else { "report" };
        let policy = if self.large { "large" } else { "example" };
        let uplink = if self.uplink { "-uplink" } else { "" };
        format!("trefoil-{mode}-{policy}{uplink}")
    }

    fn title(self) -> String {
        let mode = if self.enforce { "enforce" } else { "report" };
        let policy = match self.large {
            true => "1,000 rules, all countries",
            false => "example policy",
        };
        let uplink = if self.uplink { ", uplink" } else { "" };
        format!("Trefoil, {mode}, {policy}{uplink}")
    }
}

/// Trefoil's programs and tables, set up so.
pub fn trefoil(lab: &Lab, setup: Setup, large: &Large) -> Contender {
    let mut agent = lab
        .agent()
        .policy(&policy(setup.enforce, setup.large.then_some(&large.policy)))
        .flows("rollup");
    if setup.large {
        agent = agent.argument("--geo").argument(large.table);
    }
    if setup.uplink {
        agent = agent.uplink("to-gateway").uplink("to-peer");
    }
    let agent = agent.start().unwrap();
    let attachments = Attachment::of(agent.objects()).unwrap();
    let n_exits = attachments
        .iter()
        .filter(|it| matches!(it.place(), Place::Exit(_)))
        .count();
    assert_eq!(
        n_exits,
        if setup.uplink { 2 } else { 0 },
        "uplinks with a link, which need Linux 6.6: {}",
        agent.errors()
    );
    let maps = MapInfo::of(agent.objects()).unwrap();
    let events = maps.iter().find(|map| map.name == "EVENTS").unwrap();
    let events = Map::RingBuf(MapData::from_id(events.id).unwrap());
    let events = RingBuf::try_from(events).unwrap();
    agent.stop(Signal::SIGKILL).unwrap();
    lab.remove_pins().unwrap();
    Contender {
        events: Some(events),
        ..Contender::with(&setup.name(), &setup.title(), attachments)
    }
}

/// A policy that approves of what the benchmark sends, by its last rule.
pub fn policy(enforce: bool, large: Option<&str>) -> String {
    let text = large.unwrap_or(places::EXAMPLE_POLICY).to_owned();
    let text = match enforce {
        true => text.replacen("\"report\"", "\"enforce\"", 1),
        false => text,
    };
    format!(
        "{text}\n[[rules]]\nname = \"benchmark\"\n\
         to = {{ networks = [\"198.51.100.0/24\", \"192.0.2.0/24\"] }}\nverdict = \"approve\"\n"
    )
}
