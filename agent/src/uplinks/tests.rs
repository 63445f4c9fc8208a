//! Which interfaces are taken for uplinks.

use super::*;

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: kind.to_owned(),
        hardware: Link::ETHERNET,
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
        (&Uplinks::Auto, vec![], vec![5]),
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
fn what_no_route_leads_out_by_is_no_uplink() {
    let mut network = network(&[
        link(2, "eth0", ""),
        link(3, "docker0", "bridge"),
        link(4, "veth1", "veth"),
    ]);
    assert!(found(&network).is_empty());
    let connected = |index| Route {
        interfaces: vec![index],
        ..Route::default()
    };
    network.add_route(&connected(3));
    network.add_route(&connected(4));
    assert!(found(&network).is_empty());
    // What a device is connected to is another host.
    network.add_route(&connected(2));
    assert_eq!(found(&network), [2]);
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
