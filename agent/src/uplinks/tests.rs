//! Which interfaces are taken for uplinks.

use super::*;

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: kind.to_owned(),
        hardware: Link::ETHERNET,
        is_up: true,
        ..Link::default()
    }
}

fn part_of(master: u32, link: Link) -> Link {
    Link {
        master: Some(master),
        ..link
    }
}

fn on(lower: u32, link: Link) -> Link {
    Link {
        lower: Some(lower),
        ..link
    }
}

fn network(links: &[Link]) -> Network {
    let mut network = Network::default();
    links.iter().for_each(|link| network.add_link(link.clone()));
    network
}

fn default_by(index: u32) -> Route {
    Route {
        is_default: true,
        has_gateway: true,
        interfaces: vec![index],
    }
}

#[test]
fn tunnels_that_let_packets_wait_are_found_while_uplinks_are_watched() {
    let tunnel = link(5, "wg0", "wireguard");
    let mut network = network(&[link(2, "eth0", ""), tunnel, link(6, "gre0", "gre")]);
    network.add_route(&default_by(5));
    let named = Uplinks::Named(vec!["wg0".into()]);
    for (wanted, uplinks, tunnels) in [
        (&Uplinks::Auto, vec![2], vec![5]),
        (&Uplinks::None, vec![], vec![]),
        (&named, vec![5], vec![]),
    ] {
        assert_eq!(network.uplinks(wanted), BTreeSet::from_iter(uplinks));
        assert_eq!(network.tunnels(wanted), BTreeSet::from_iter(tunnels));
    }
}

fn found(network: &Network) -> Vec<u32> {
    network.uplinks(&Uplinks::Auto).into_iter().collect()
}

#[test]
fn what_leads_to_guests_is_no_uplink_unless_a_route_leads_out_by_it() {
    let mut network = network(&[
        link(3, "docker0", "bridge"),
        part_of(3, link(4, "veth1", "veth")),
        part_of(3, link(5, "tap1", "tun")),
        link(6, "dummy0", "dummy"),
        link(7, "cable", "veth"),
        Link {
            is_of_guest: true,
            ..link(8, "eth0_3", "")
        },
    ]);
    assert!(found(&network).is_empty());
    let connected = |index| Route {
        interfaces: vec![index],
        ..Route::default()
    };
    for index in [3, 4, 6, 7, 8] {
        network.add_route(&connected(index));
    }
    assert!(found(&network).is_empty());
    network.add_route(&default_by(7));
    assert_eq!(found(&network), [7]);
}

/// A process needs no route: it can name an interface, or a link-scope address.
#[test]
fn what_leads_out_is_watched_whether_or_not_a_route_does() {
    let network = network(&[
        link(2, "eth0", ""),
        on(2, link(3, "eth0.7", "vlan")),
        on(2, link(4, "mac0", "macvlan")),
        part_of(7, link(5, "eth1", "")),
        part_of(7, link(6, "eth2", "")),
        link(7, "bond0", "bond"),
        on(7, link(8, "bond0.7", "vlan")),
        part_of(10, link(9, "eth3", "")),
        link(10, "br0", "bridge"),
        link(11, "wwan0", "wwan"),
        Link {
            is_lower_elsewhere: true,
            ..link(12, "mac1", "macvlan")
        },
        Link {
            is_up: false,
            ..link(13, "eth4", "")
        },
    ]);
    assert_eq!(found(&network), [2, 5, 6, 9, 11, 12, 13]);
}

#[test]
fn what_leads_out_and_is_not_named_is_left_out_while_it_is_up() {
    let mut network = network(&[link(2, "eth0", ""), link(3, "eth1", "")]);
    let named = Uplinks::Named(vec!["eth0".into()]);
    assert_eq!(network.left_out(&named), BTreeSet::from([3]));
    assert!(network.left_out(&Uplinks::Auto).is_empty());
    assert!(network.left_out(&Uplinks::None).is_empty());
    network.add_link(Link {
        is_up: false,
        ..link(3, "eth1", "")
    });
    assert!(network.left_out(&named).is_empty());
}

#[test]
fn what_has_headers_that_are_not_known_counts_once_it_is_up() {
    const CAN: u16 = 280;
    let device = |is_up| Link {
        hardware: CAN,
        is_up,
        ..link(2, "can0", "")
    };
    assert!(found(&network(&[device(false)])).is_empty());
    assert_eq!(found(&network(&[device(true)])), [2]);
}

#[test]
fn a_frame_is_counted_once_however_interfaces_are_stacked() {
    let mut network = network(&[
        part_of(4, link(2, "eth0", "")),
        part_of(4, link(3, "eth1", "")),
        link(4, "bond0", "bond"),
        on(4, link(5, "bond0.7", "vlan")),
    ]);
    network.add_route(&default_by(5));
    network.add_route(&default_by(4));
    network.add_route(&default_by(2));
    assert_eq!(found(&network), [2, 3]);
}

#[test]
fn of_a_bridge_the_devices_lead_out_and_not_the_guests() {
    let mut network = network(&[
        part_of(4, link(2, "eth0", "")),
        part_of(4, link(3, "tap0", "tun")),
        link(4, "br0", "bridge"),
    ]);
    network.add_route(&default_by(4));
    assert_eq!(found(&network), [2]);
}

#[test]
fn a_tunnel_is_no_uplink_and_neither_is_loopback() {
    let mut lo = link(1, "lo", "");
    lo.hardware = Link::LOOPBACK;
    let mut network = network(&[lo, link(2, "wg0", "wireguard")]);
    network.add_route(&default_by(1));
    network.add_route(&default_by(2));
    assert!(found(&network).is_empty());
}

#[test]
fn named_interfaces_are_taken_as_named_and_renamed_ones_with_their_new_name() {
    let mut network = network(&[link(2, "eth0", ""), link(3, "wg0", "wireguard")]);
    let wanted = Uplinks::Named(vec!["wg0".into()]);
    assert_eq!(network.uplinks(&wanted), BTreeSet::from([3]));
    network.add_link(link(3, "wg1", "wireguard"));
    assert!(network.uplinks(&wanted).is_empty());
    assert!(network.uplinks(&Uplinks::None).is_empty());
}

#[test]
fn an_interface_that_is_built_on_itself_ends() {
    let mut network = network(&[on(2, link(2, "vlan0", "vlan"))]);
    network.add_route(&default_by(2));
    assert!(found(&network).is_empty());
    network.remove_link(2);
    assert!(found(&network).is_empty());
}
