//! The ways of the battery that need a kernel with more modules than the machine that runs the
//! tests may have. See `tests/battery/main.rs` for what is graded, and how.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::battery::{Grade, Grades, Privilege, Table, Told, seen_and_owned};
use trefoil_lab::foretold::{Foretold, foretold, of_call};
use trefoil_lab::vm::Vm;

use crate::world::{REFUSED, TRAFFIC, arrived, detach, installed};

/// Policy under which packets inside of tunnels go to an approved address.
const POLICY: &str = r#"mode = "report"
[[rules]]
name    = "inside of tunnels"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;

/// Addresses of the far end begin so, and those that are approved.
const FAR: &str = "203.0.113";
/// See [`FAR`].
const APPROVED: &str = "198.51.100";

/// A way out: shell commands, to which `$enforced` is `true` or `false`.
struct Way {
    id: &'static str,
    privilege: Privilege,
    /// Last part of its far address.
    host: u8,
    /// Makes what is there before.
    prepare: String,
    /// Sends.
    send: String,
    /// Waits until the far end has it, where packets that arrive do not say so; not in
    /// enforce mode.
    take: String,
    /// Takes away what would go on.
    end: String,
    /// It is the command that sends, and not the kernel by itself.
    is_a_process: bool,
    /// The kernel sends something of its own as well, less than the command.
    greets: bool,
}

impl Way {
    fn to(&self) -> IpAddr {
        Ipv4Addr::new(203, 0, 113, self.host).into()
    }
}

/// A connection to a server at the far end; `modules` carry it, and `/proc/sys/net/{retries}`
/// is how often it is asked for.
fn transport(id: &'static str, host: u8, name: &str, modules: &str, retries: &str) -> Way {
    // DCCP has no half that could be closed: the connection is over when the server ends.
    let wait = if name == "dccp" { "" } else { "--wait" };
    // Whoever asks by SMC is answered by TCP, which the two then speak.
    let transport = if name == "smc" {
        String::new()
    } else {
        format!("--transport {name}")
    };
    let serve = format!("{TRAFFIC} serve 443 {wait} {transport}");
    let to = format!("203.0.113.{host}:443");
    Way {
        id,
        privilege: Privilege::Root,
        host,
        // Where the far end does not answer, or may not be asked, one greeting and
        // another are enough.
        prepare: format!(
            "modprobe {modules} && echo 1 > /proc/sys/net/{retries} && \
             ip -n far address replace 203.0.113.{host}/32 dev lo && rm -f /run/server && \
             {{ ip netns exec far {serve} >/run/server 2>&1 </dev/null & \
             echo $! >/run/server.pid; }} && \
             until grep -q port /run/server; do sleep 0.1; done"
        ),
        send: format!("{TRAFFIC} tcp {to} --transport {name} --bytes 500"),
        take: String::new(),
        // It may have ended by itself.
        end: "kill $(cat /run/server.pid) 2>/dev/null || true".into(),
        is_a_process: true,
        greets: false,
    }
}

fn tunnel(id: &'static str, host: u8, kind: &str) -> Way {
    Way {
        id,
        privilege: Privilege::Root,
        host,
        prepare: format!(
            "ip link add out type {kind} local 192.0.2.1 remote 203.0.113.{host} && \
             ip link set out up && ip route add 198.51.100.{host} dev out src 192.0.2.1"
        ),
        send: format!("{TRAFFIC} udp 198.51.100.{host}:9"),
        take: String::new(),
        end: "ip link del out".into(),
        is_a_process: true,
        greets: false,
    }
}

/// A datagram through a tunnel of WireGuard's to the far end; longer than what the two
/// ends say to each other to make a session.
fn wireguard(id: &'static str, host: u8, port: u16, has_session: bool) -> Way {
    let name = format!("wg{host}");
    let far = "ip netns exec far";
    // The far device is made where it is to be: its packets come from there, wherever it is
    // moved to. Without the address it would answer from another, and be sent to there.
    let make = format!(
        "umask 077 && rm -f /run/taken && wg genkey >/run/near.key && wg genkey >/run/far.key && \
         ip link add {name} type wireguard && ip -n far link add {name} type wireguard && \
         wg set {name} private-key /run/near.key peer $(wg pubkey </run/far.key) \
             endpoint 203.0.113.{host}:{port} allowed-ips 198.51.100.{host}/32 && \
         {far} wg set {name} private-key /run/far.key listen-port {port} \
             peer $(wg pubkey </run/near.key) allowed-ips 192.0.2.1/32 && \
         ip -n far address add 203.0.113.{host}/32 dev lo && \
         ip -n far address add 198.51.100.{host}/32 dev {name} && \
         ip -n far link set {name} up && ip link set {name} up && \
         ip route add 198.51.100.{host} dev {name} src 192.0.2.1 && \
         {{ {far} {TRAFFIC} receive 9 >/run/taken 2>&1 </dev/null & }} && \
         until grep -q port /run/taken; do sleep 0.1; done"
    );
    let delete = format!(
        "ip link del {name} && ip -n far link del {name} && \
         ip -n far address del 203.0.113.{host}/32 dev lo"
    );
    // In enforce mode there can be none but that from before, since the greeting is blocked
    // as well.
    let (prepare, end) = if has_session {
        let greet = format!(
            "wg set {name} peer $(wg pubkey </run/far.key) persistent-keepalive 1 && \
             until wg show {name} latest-handshakes | grep -qv '\t0$'; do sleep 0.1; done && \
             wg set {name} peer $(wg pubkey </run/far.key) persistent-keepalive 0"
        );
        (
            format!("$enforced || {{ {make} && {greet}; }}"),
            format!("! $enforced || {{ {delete}; }}"),
        )
    } else {
        (make, delete)
    };
    Way {
        id,
        privilege: Privilege::Root,
        host,
        prepare,
        send: format!("{TRAFFIC} udp 198.51.100.{host}:9 --size 1000"),
        take: "until grep -q '\"bytes\":1000' /run/taken; do sleep 0.1; done".into(),
        end,
        is_a_process: true,
        greets: true,
    }
}

/// A datagram that the kernel encrypts. It goes to `to`, and the packet around it, if there is
/// one, to `around`. The far end does not read it.
fn ipsec(id: &'static str, host: u8, [to, around]: [&str; 2], more: &str) -> Way {
    const KEYS: &str = "enc 'cbc(aes)' 0x00112233445566778899aabbccddeeff \
         auth 'hmac(sha256)' 0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let mode = if to == around { "transport" } else { "tunnel" };
    let ends = format!("src 192.0.2.1 dst {around}.{host}");
    let template = format!("proto esp spi 0x10{host} mode {mode}");
    Way {
        id,
        privilege: Privilege::Root,
        host,
        prepare: format!(
            "ip xfrm state add {ends} {template} {KEYS} {more} && \
             ip xfrm policy add src 192.0.2.1 dst {to}.{host} dir out $of tmpl {ends} {template}"
        ),
        send: format!("{TRAFFIC} udp {to}.{host}:9"),
        take: String::new(),
        end: "ip xfrm policy flush && ip xfrm state flush".into(),
        is_a_process: true,
        greets: false,
    }
}

/// As it is, by an interface of its own, which the route to `to` leads to.
fn by_interface(to: &str, way: Way) -> Way {
    let make = format!(
        "of='if_id 7'; ip link add ipsec0 type xfrm dev uplink if_id 7 && \
         ip link set ipsec0 up && ip route add {to}.{} dev ipsec0 src 192.0.2.1",
        way.host
    );
    Way {
        prepare: format!("{make} && {}", way.prepare),
        end: format!("{} && ip link del ipsec0", way.end),
        ..way
    }
}

fn as_user(way: Way) -> Way {
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    Way {
        send: format!("{user} {}", way.send),
        privilege: Privilege::User,
        ..way
    }
}

fn ways() -> Vec<Way> {
    vec![
        transport("11b", 20, "sctp", "sctp", "sctp/max_init_retransmits"),
        transport(
            "11c",
            22,
            "dccp",
            "dccp_ipv6",
            "dccp/default/request_retries",
        ),
        tunnel("21d", 24, "gre"),
        tunnel("21e", 28, "ipip"),
        wireguard("21f", 32, 51820, true),
        wireguard("21g", 33, 51821, false),
        Way {
            id: "22a",
            privilege: Privilege::Root,
            host: 36,
            prepare: "modprobe nfsv4".into(),
            send: "(timeout --signal=KILL 20 mount -i -t nfs4 \
                   -o addr=203.0.113.36,clientaddr=192.0.2.1,soft,timeo=10,retrans=1 \
                   203.0.113.36:/ /mnt >/dev/null 2>&1 </dev/null &)"
                .into(),
            take: String::new(),
            end: "while grep -qx mount /proc/[0-9]*/comm; do sleep 0.1; done".into(),
            is_a_process: false,
            greets: false,
        },
        Way {
            id: "30a",
            privilege: Privilege::Root,
            host: 37,
            prepare: String::new(),
            send: format!(
                "{TRAFFIC} packet uplink 02:00:00:00:00:02 203.0.113.37:9 --from 192.0.2.1:4000 \
                 --xdp"
            ),
            take: String::new(),
            end: String::new(),
            is_a_process: true,
            greets: false,
        },
        Way {
            id: "39m",
            privilege: Privilege::Root,
            host: 40,
            prepare:
                "ip link add link uplink name vlan7 type vlan id 7 && ip link set vlan7 up && \
                      ip route add 203.0.113.40 dev vlan7 scope link src 192.0.2.1 && \
                      ip neighbour add 203.0.113.40 lladdr 02:00:00:00:00:02 dev vlan7 \
                          nud permanent"
                    .into(),
            send: format!("{TRAFFIC} udp 203.0.113.40:9"),
            take: String::new(),
            end: "ip link del vlan7".into(),
            is_a_process: true,
            greets: false,
        },
        as_user(transport("43c", 44, "smc", "smc", "ipv4/tcp_syn_retries")),
        as_user(Way {
            id: "43d",
            privilege: Privilege::Root,
            host: 48,
            // A message whose connection is there before `sendto` returns is sent by the
            // process. It gets its route afterwards, so that the kernel sends it.
            prepare: "modprobe rds_tcp && ip route add prohibit 203.0.113.48 && \
                      { for _ in $(seq 100); do \
                            grep -qsx sent /proc/[0-9]*/comm && break; sleep 0.1; \
                        done; \
                        ip route del prohibit 203.0.113.48; } >/dev/null 2>&1 &"
                .into(),
            send: format!("{TRAFFIC} rds 192.0.2.1:4000 203.0.113.48:4000"),
            take: String::new(),
            end: String::new(),
            is_a_process: true,
            greets: false,
        }),
        as_user(ipsec("44a", 52, [FAR, FAR], "")),
        as_user(ipsec("44b", 56, [APPROVED, FAR], "")),
        by_interface(APPROVED, ipsec("44c", 60, [APPROVED, FAR], "if_id 7")),
        ipsec(
            "44d",
            64,
            [APPROVED, FAR],
            "encap espinudp 4500 4500 0.0.0.0",
        ),
        as_user(ipsec("44e", 68, [FAR, APPROVED], "")),
        Way {
            send: format!("{TRAFFIC} raw {FAR}.72"),
            ..ipsec("44f", 72, [FAR, APPROVED], "")
        },
        by_interface(
            FAR,
            Way {
                send: format!("{TRAFFIC} raw {FAR}.76"),
                ..ipsec("44g", 76, [FAR, APPROVED], "if_id 7")
            },
        ),
    ]
}

#[test]
fn the_battery_where_the_kernel_has_more_modules() -> Result<()> {
    let mut vm = installed("battery")?;
    vm.write("/etc/trefoil/policy.toml", POLICY)?;
    vm.ok("systemctl reload trefoil")?;
    let ways = ways();
    let mut reported = Vec::new();
    for way in &ways {
        let gone = go(&mut vm, way, false)?;
        ensure!(gone.packets > 0, "{}: nothing arrived", way.id);
        reported.push(gone);
    }
    // Its device is there no more, and was watched as long as it was.
    let tunnel = vm.journal("-u trefoil TREFOIL_SUBJECT=tunnel\\ wg33")?;
    let states: Vec<_> = tunnel.iter().map(|it| it.text("TREFOIL_STATE")).collect();
    ensure!(
        states == ["covered", "uncovered"],
        "tunnel wg33: {states:?}"
    );
    let reporting = status(&mut vm)?["policy"]["id"].as_str().map(str::to_owned);
    let reporting = reporting.context("the policy in force has no id")?;

    vm.write(
        "/etc/trefoil/policy.toml",
        &POLICY.replace("\"report\"", "\"enforce\""),
    )?;
    vm.ok("systemctl reload trefoil")?;
    let mut arrived = Vec::new();
    for way in &ways {
        arrived.push(go(&mut vm, way, true)?.packets);
    }
    // Removal of the programs from the kernel ends their flows.
    detach(&mut vm)?;
    let records = vm.journal(&format!(
        "-u trefoil TREFOIL_STATE=closed TREFOIL_POLICY={reporting}"
    ))?;

    // No hook sees into the tunnel; the address that its process has named is told beside its end.
    let named = |record: &&Record| record.is("TREFOIL_DST_NAMED", format!("{FAR}.68"));
    let behind: Vec<_> = records.iter().filter(named).collect();
    ensure!(
        !behind.is_empty()
            && behind
                .iter()
                .all(|it| it.is("TREFOIL_ATTRIBUTION", "direct")),
        "44e: {behind:?}"
    );

    let table = Table::of_the_project()?;
    let mut differences = Vec::new();
    for ((way, gone), packets) in ways.iter().zip(reported).zip(arrived) {
        let has_left = |record: &&Record| {
            record
                .number("TREFOIL_BYTES_OUT")
                .is_ok_and(|bytes| bytes > 0)
        };
        // Of what is encrypted, the record has the end of the tunnel.
        let named = |it: &&Record| {
            it.is("TREFOIL_DST_NAMED", way.to()) && !it.is("TREFOIL_DST_ADDR", way.to())
        };
        let named = records.iter().filter(named);
        let left = about(&records, way).chain(named).filter(has_left);
        let left: Vec<Record> = left.cloned().collect();
        let foretold = graded(&mut vm, &left, packets).context(way.id)?;
        let told = told_by(&records, way)?;
        let by_the_kernel =
            about(&records, way).filter(|record| record.is("TREFOIL_ATTRIBUTION", "kernel"));
        let by_the_kernel: u64 = by_the_kernel
            .map(|record| record.number("TREFOIL_BYTES_OUT"))
            .sum::<Result<_>>()?;
        ensure!(
            by_the_kernel < gone.bytes && (by_the_kernel > 0) == way.greets,
            "{}: {by_the_kernel} B are said to be the kernel's own",
            way.id
        );
        let mut found = seen_and_owned(&told, gone.bytes, &gone.senders);
        if found.seen == Grade::No && gone.of_no_flow >= gone.bytes {
            found.seen = Grade::Part;
        }
        let observed = Grades {
            privilege: way.privilege,
            seen: found.seen,
            owned: found.owned,
            attribution: found.attribution,
            blocked: if packets == 0 { Grade::Yes } else { Grade::No },
            foretold,
        };
        if let Err(difference) = table.hold(way.id, &observed) {
            differences.push(difference.to_string());
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Grade of what is foretold by records of a way that say that something left, as
/// `tests/battery.txt` has it. In enforce mode so many packets arrive.
fn graded(vm: &mut Vm, left: &[Record], packets: u64) -> Result<Grade> {
    let left: Vec<&Record> = left.iter().collect();
    let said = foretold(&left, "TREFOIL_", |records| against(vm, records))?;
    println!("{packets} packets arrive, and foretold is {said:?}");
    Ok(match of_call(said) {
        None if packets == 0 => Grade::No,
        None => Grade::Without,
        Some(Foretold::Uncertain) => Grade::Part,
        Some(outcome) if (outcome == Foretold::Leaves) == (packets > 0) => Grade::Yes,
        Some(_) => Grade::No,
    })
}

/// Outcome of one way, gone once.
struct Gone {
    senders: BTreeSet<u32>,
    /// Payload that was sent; 1 where only greetings were.
    bytes: u64,
    /// Bytes that left meanwhile and that no hook of a socket has judged.
    of_no_flow: u64,
    /// How many arrived.
    packets: u64,
}

/// Sums of the uplinks' books as they are now.
struct Books {
    of_no_flow: u64,
    dropped: u64,
}

/// It has findings as long as something is not covered.
fn status(vm: &mut Vm) -> Result<serde_json::Value> {
    let said = vm.run("trefoil status --json")?.stdout;
    serde_json::from_str(&said).with_context(|| format!("status is {said:?}"))
}

fn books(vm: &mut Vm) -> Result<Books> {
    let status = status(vm)?;
    let uplinks = status["uplinks"].as_object().context("no uplinks")?;
    let sum = |names: &[&str]| -> u64 {
        let of_one = |books: &serde_json::Value, name: &&str| books[*name].as_u64().unwrap_or(0);
        let all = uplinks.values();
        all.flat_map(|books| names.iter().map(move |name| of_one(books, name)))
            .sum()
    };
    Ok(Books {
        of_no_flow: sum(&[
            "bytes_kernel",
            "bytes_forwarded",
            "bytes_packet_socket",
            "bytes_not_ip",
            "bytes_unaccounted",
        ]),
        dropped: sum(&["bytes_dropped"]),
    })
}

/// Goes one way.
fn go(vm: &mut Vm, way: &Way, enforced: bool) -> Result<Gone> {
    let command = |text: &str| format!("enforced={enforced}; {text}");
    vm.ok(&command(&way.prepare)).context(way.id)?;
    let (before, books_before) = (arrived(vm)?, books(vm)?);
    let sent = vm.run(&way.send)?;
    println!("{}: {sent:?}", way.id);
    let is_refused = enforced && sent.code == REFUSED;
    let (mut senders, mut bytes) = (BTreeSet::new(), 1);
    if way.is_a_process && !is_refused {
        let line = sent.stdout.lines().last().context("it said nothing")?;
        let told = Record::parse(line)?;
        senders.insert(told.number("pid")? as u32);
        bytes = told.number("bytes").unwrap_or(1);
    }
    let to = way.to().to_string();
    vm.wait_until(
        &format!("{}: packets arrive or are blocked", way.id),
        |vm| {
            let is_blocked = enforced
                && (is_refused
                    || books(vm)?.dropped > books_before.dropped
                    || vm
                        .journal("-u trefoil TREFOIL_EVENT=violation")?
                        .iter()
                        .any(|record| {
                            record.is("TREFOIL_DST_ADDR", &to)
                                && ["refused", "dropped"]
                                    .contains(&record.text("TREFOIL_OUTCOME").as_str())
                        }));
            Ok((is_blocked || arrived(vm)? > before).then_some(()))
        },
    )?;
    if !enforced {
        vm.ok(&way.take).context(way.id)?;
    }
    vm.ok(&command(&way.end)).context(way.id)?;
    Ok(Gone {
        senders,
        bytes,
        of_no_flow: books(vm)?.of_no_flow - books_before.of_no_flow,
        packets: arrived(vm)? - before,
    })
}

/// Records about the far address of a way.
fn about<'a>(records: &'a [Record], way: &Way) -> impl Iterator<Item = &'a Record> {
    let to = way.to();
    records
        .iter()
        .filter(move |record| record.is("TREFOIL_DST_ADDR", to))
}

/// Prints what the policy in enforce mode would make of these records.
fn against(vm: &mut Vm, records: &[&Record]) -> Result<String> {
    let lines: Vec<String> = records.iter().map(ToString::to_string).collect();
    vm.write("/run/records.json", &lines.join("\n"))?;
    let verb = "trefoil check /etc/trefoil/policy.toml --json --against /run/records.json";
    Ok(vm.run(verb)?.stdout)
}

fn told_by(records: &[Record], way: &Way) -> Result<Vec<Told>> {
    about(records, way)
        .map(|record| {
            println!("{record}");
            Told::by(record, "TREFOIL_", true)
        })
        .collect()
}
