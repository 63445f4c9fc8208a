//! Tables as the kernel writes them, and the connections that are in them.

use super::*;

/// As `/proc/net/tcp` of a machine that stores numbers with the low byte first.
#[cfg(target_endian = "little")]
const TCP4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 010200C0:0016 0A7100CB:C001 01 00000000:00000000 02:000A0000 00000000     0        0 101 4 0 20 4 30 10 -1
   2: 010200C0:9F6A 0A6433C6:1538 08 00000000:00000000 00:00000000 00000000   999        0 102 3 0
   3: 010200C0:9F6C 0A7100CB:01BB 06 00000000:00000000 03:00000993 00000000     0        0 0 3 0
   4: 010200C0:0016 0B7100CB:C002 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0
   5: 010200C0:9F70 010200C0:01BB 01 00000000:00000000 00:00000000 00000000     0        0 105 1 0
   6: 010200C0:9F72 0A7100CB:01BB 02 00000001:00000000 01:00000000 00000000     0        0 106 1 0
";

const TCP6: &str = "  sl  local_address remote_address st
   0: 0000000000000000FFFF0000010200C0:9F80 0000000000000000FFFF00000A7100CB:01BB 01 00000000:00000000 00:00000000 00000000     0        0 107 1 0
   1: B80D0120000001000000000001000000:9F81 B80D0120000003000000000010000000:01BB 01 00000000:00000000 00:00000000 00000000     0        0 108 1 0
";

const UDP4: &str = "   sl  local_address rem_address   st
    9: 010200C0:B001 0A7100CB:0035 01 00000000:00000000 00:00000000 00000000   101        0 109 2 0 0
   10: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 110 2 0 0
   11: 010200C0:0016 0A7100CB:0035 01 00000000:00000000 00:00000000 00000000   101        0 111 2 0 0
";

const FIB_TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 192.0.2.1
        /32 host LOCAL
     |-- 192.0.2.128
        /25 host LOCAL
        /25 link UNICAST
Local:
  +-- 127.0.0.0/8 2 0 2
     |-- 192.0.2.1
        /32 host LOCAL
";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn holder(pid: u32) -> Arc<Holder> {
    Arc::new(Holder {
        pid,
        comm: "x".to_owned(),
        uid: Some(0),
        gid: Some(0),
        interactive: None,
        session: None,
        executable: None,
        cgroup: None,
    })
}

fn namespace() -> Namespace {
    let mut sockets = table::parse(TCP4, table::TCP);
    sockets.extend(table::parse(TCP6, table::TCP));
    sockets.extend(table::parse(UDP4, table::UDP));
    Namespace {
        sockets,
        own: table::own_networks_v4(FIB_TRIE),
    }
}

#[cfg(target_endian = "little")]
#[test]
fn a_socket_is_read_with_its_ends_and_its_user() {
    let sockets = table::parse(TCP4, table::TCP);
    assert_eq!(sockets.len(), 7, "the header is none");
    assert!(sockets[0].listens() && !sockets[0].is_connected());
    assert_eq!(sockets[1].local, at("192.0.2.1:22"));
    assert_eq!(sockets[1].peer, at("203.0.113.10:49153"));
    assert_eq!((sockets[2].uid, sockets[2].inode), (999, 102));
    assert_eq!(table::parse("1: 00000000:0016\n\nx", table::TCP), []);
    assert_eq!(table::parse("1: 0000é000:0016 0:0 01", table::TCP), []);
}

#[cfg(target_endian = "little")]
#[test]
fn what_is_connected_and_leaves_is_a_connection() {
    let by_inode = HashMap::from([(100, vec![holder(1)]), (101, vec![holder(7), holder(8)])]);
    let found = namespace().connections(&by_inode);
    let summary: Vec<_> = found
        .iter()
        .map(|one| {
            let pids: Vec<u32> = one.holders.iter().map(|holder| holder.pid).collect();
            (one.protocol, one.local.port(), one.peer, one.accepted, pids)
        })
        .collect();
    let expected = [
        (table::TCP, 22, at("203.0.113.10:49153"), true, vec![7, 8]),
        // The far end will send no more, but this one may.
        (table::TCP, 40810, at("198.51.100.10:5432"), false, vec![]),
        // In the listener's queue.
        (table::TCP, 22, at("203.0.113.11:49154"), true, vec![1]),
        // Mapped addresses are IPv4 addresses.
        (table::TCP, 40832, at("203.0.113.10:443"), false, vec![]),
        (table::TCP, 40833, at("[2001:db8:3::10]:443"), false, vec![]),
        (table::UDP, 45057, at("203.0.113.10:53"), false, vec![]),
        // A socket that listens for TCP accepts nothing of UDP.
        (table::UDP, 22, at("203.0.113.10:53"), false, vec![]),
    ];
    assert_eq!(summary, expected);
}

#[test]
fn own_addresses_are_those_that_are_delivered_here() {
    let own: Vec<String> = table::own_networks_v4(FIB_TRIE)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        own,
        [
            "127.0.0.0/8",
            "127.0.0.1/32",
            "192.0.2.1/32",
            "192.0.2.128/25"
        ]
    );
    let six: Vec<String> = table::own_addresses_v6(
        "20010db8000100000000000000000001 02 40 00 80     eth0\nfe80 04 40 20 80 eth0\n",
    )
    .map(|network| network.to_string())
    .collect();
    assert_eq!(six, ["2001:db8:1::1/128"]);
}
