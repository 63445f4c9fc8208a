//! The ways of the battery that need a kernel with more modules than the machine that
//! runs the tests may have. What is graded, and how, is in `tests/battery/main.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::battery::{Grade, Grades, Table, Told, seen_and_owned};
use trefoil_lab::vm::Vm;

use crate::world::{TRAFFIC, arrived, installed};

/// What is inside of tunnels goes to an approved address.
const POLICY: &str = r#"mode = "report"
[[rules]]
name    = "inside of tunnels"
to      = { networks = ["198.51.100.0/24"] }
verdict = "approve"
"#;

/// systemd-networkd makes a WireGuard device with one peer, whose key is anybody's.
const WIREGUARD: [(&str, &str); 2] = [
    (
        "/etc/systemd/network/wg0.netdev",
        "[NetDev]\nName=wg0\nKind=wireguard\n[WireGuard]\n\
         PrivateKey=YAnzR9hfhjmWhhjlq2Nk8d9zc1uJOD1P4xC3eD7XtEE=\n[WireGuardPeer]\n\
         PublicKey=xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
         AllowedIPs=198.51.100.0/24\nEndpoint=203.0.113.32:51820\n",
    ),
    (
        "/etc/systemd/network/wg0.network",
        "[Match]\nName=wg0\n[Link]\nRequiredForOnline=no\n[Network]\nLinkLocalAddressing=no\n",
    ),
];

/// A way out: shell commands.
struct Way {
    id: &'static str,
    /// Last part of its far address.
    host: u8,
    /// What is there before.
    prepare: String,
    /// Sends.
    send: String,
    /// Takes away what would go on.
    end: String,
    /// It is the command that sends, and not the kernel by itself.
    is_a_process: bool,
}

impl Way {
    fn to(&self) -> IpAddr {
        Ipv4Addr::new(203, 0, 113, self.host).into()
    }
}

fn transport(id: &'static str, host: u8, name: &str) -> Way {
    let serve = format!("{TRAFFIC} serve 443 --wait --transport {name}");
    let to = format!("203.0.113.{host}:443");
    Way {
        id,
        host,
        // Where the far end does not answer, or may not be asked, one greeting and
        // another are enough.
        prepare: format!(
            "modprobe {name} && echo 1 > /proc/sys/net/{name}/max_init_retransmits && \
             ip -n far address replace 203.0.113.{host}/32 dev lo && rm -f /run/server && \
             {{ ip netns exec far {serve} >/run/server 2>&1 </dev/null & \
             echo $! >/run/server.pid; }} && \
             until grep -q port /run/server; do sleep 0.1; done"
        ),
        send: format!("{TRAFFIC} tcp {to} --transport {name} --bytes 500"),
        // It may have ended by itself.
        end: "kill $(cat /run/server.pid) 2>/dev/null || true".into(),
        is_a_process: true,
    }
}

fn tunnel(id: &'static str, host: u8, kind: &str) -> Way {
    Way {
        id,
        host,
        prepare: format!(
            "ip link add out type {kind} local 192.0.2.1 remote 203.0.113.{host} && \
             ip link set out up && ip route add 198.51.100.{host} dev out src 192.0.2.1"
        ),
        send: format!("{TRAFFIC} udp 198.51.100.{host}:9"),
        end: "ip link del out".into(),
        is_a_process: true,
    }
}

fn ways() -> Vec<Way> {
    vec![
        transport("11b", 20, "sctp"),
        tunnel("21d", 24, "gre"),
        tunnel("21e", 28, "ipip"),
        Way {
            id: "21f",
            host: 32,
            prepare: "systemctl start systemd-networkd && networkctl reload && \
                      until ip link show wg0 up; do ip link set wg0 up; sleep 0.1; done && \
                      ip route replace 198.51.100.32 dev wg0 src 192.0.2.1"
                .into(),
            send: format!("{TRAFFIC} udp 198.51.100.32:9"),
            end: "systemctl stop systemd-networkd.socket systemd-networkd && ip link del wg0"
                .into(),
            is_a_process: true,
        },
        Way {
            id: "22a",
            host: 36,
            prepare: "modprobe nfsv4".into(),
            send: "(timeout --signal=KILL 20 mount -i -t nfs4 \
                   -o addr=203.0.113.36,clientaddr=192.0.2.1,soft,timeo=10,retrans=1 \
                   203.0.113.36:/ /mnt >/dev/null 2>&1 </dev/null &)"
                .into(),
            end: "while grep -qx mount /proc/[0-9]*/comm; do sleep 0.1; done".into(),
            is_a_process: false,
        },
    ]
}

#[test]
fn the_battery_where_the_kernel_has_more_modules() -> Result<()> {
    let mut vm = installed("battery")?;
    for (path, text) in WIREGUARD {
        vm.write(path, text)?;
    }
    vm.write("/etc/trefoil/policy.toml", POLICY)?;
    vm.ok("systemctl reload trefoil")?;
    let ways = ways();
    let mut reported = Vec::new();
    for way in &ways {
        let gone = go(&mut vm, way, false)?;
        ensure!(gone.packets > 0, "{}: nothing arrived", way.id);
        reported.push(gone);
    }
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
    // What is taken out of the kernel ends its flows.
    vm.ok("trefoil detach")?;
    vm.wait_until("the service has ended", |vm| {
        Ok((vm.run("systemctl is-active trefoil")?.code != 0).then_some(()))
    })?;
    let records = vm.journal(&format!(
        "-u trefoil TREFOIL_STATE=closed TREFOIL_POLICY={reporting}"
    ))?;

    let table = Table::of_the_project()?;
    let mut differences = Vec::new();
    for ((way, gone), packets) in ways.iter().zip(reported).zip(arrived) {
        let told = told_by(&records, way)?;
        let (mut seen, owned) = seen_and_owned(&told, gone.bytes, &gone.senders);
        if seen == Grade::No && gone.of_no_flow >= gone.bytes {
            seen = Grade::Part;
        }
        let observed = Grades {
            seen,
            owned,
            blocked: if packets == 0 { Grade::Yes } else { Grade::No },
        };
        if let Err(difference) = table.hold(way.id, observed) {
            differences.push(difference.to_string());
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// What one way came to, once.
struct Gone {
    senders: BTreeSet<u32>,
    /// Payload that was sent; 1 where only greetings were.
    bytes: u64,
    /// Bytes that left meanwhile and that no hook of a socket has judged.
    of_no_flow: u64,
    /// How many arrived.
    packets: u64,
}

/// What the uplinks' books say now.
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
    vm.ok(&way.prepare).context(way.id)?;
    let (before, books_before) = (arrived(vm)?, books(vm)?);
    let sent = vm.run(&way.send)?;
    println!("{}: {sent:?}", way.id);
    let (mut senders, mut bytes) = (BTreeSet::new(), 1);
    if way.is_a_process {
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
                && (books(vm)?.dropped > books_before.dropped
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
    if !way.end.is_empty() {
        vm.ok(&way.end).context(way.id)?;
    }
    Ok(Gone {
        senders,
        bytes,
        of_no_flow: books(vm)?.of_no_flow - books_before.of_no_flow,
        packets: arrived(vm)? - before,
    })
}

fn told_by(records: &[Record], way: &Way) -> Result<Vec<Told>> {
    records
        .iter()
        .filter(|record| record.is("TREFOIL_DST_ADDR", way.to()))
        .map(|record| {
            println!("{record}");
            Ok(Told {
                bytes: record.number("TREFOIL_BYTES_OUT")?,
                pid: record.number("TREFOIL_PID").unwrap_or_default() as u32,
                is_direct: record.is("TREFOIL_ATTRIBUTION", "direct"),
            })
        })
        .collect()
}
