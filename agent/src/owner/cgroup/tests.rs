//! Paths as they are found on hosts, and what they say.

use proptest::prelude::*;

use super::*;
use crate::policy::pattern::UnitPattern;

const ID: &str = "4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042";

fn placement(path: &str) -> Placement {
    Placement::of(&path.replace("ID", ID))
}

#[test]
fn units_are_what_stands_behind_slices() {
    #[rustfmt::skip]
    let table = [
        // path, unit, slice, user unit
        ("/", None, None, None),
        ("", None, None, None),
        ("/init.scope", Some("init.scope"), Some("-.slice"), None),
        ("/system.slice", None, Some("system.slice"), None),
        ("/system.slice/nginx.service", Some("nginx.service"), Some("system.slice"), None),
        ("/system.slice/nginx.service/", Some("nginx.service"), Some("system.slice"), None),
        ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service"), Some("system-getty.slice"), None),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", Some("postgresql@15-main.service"), Some("system-postgresql.slice"), None),
        ("/system.slice/foo.service/workers/3", Some("foo.service"), Some("system.slice"), None),
        ("/system.slice/dev-hugepages.mount", Some("dev-hugepages.mount"), Some("system.slice"), None),
        ("/system.slice/run-user-1000.mount", Some("run-user-1000.mount"), Some("system.slice"), None),
        ("/system.slice/ssh.socket", Some("ssh.socket"), Some("system.slice"), None),
        ("/system.slice/dev-disk-by\\x2dlabel-swap.swap", Some("dev-disk-by\\x2dlabel-swap.swap"), Some("system.slice"), None),
        ("/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope"), Some("user-1000.slice"), None),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", Some("user@1000.service"), Some("user-1000.slice"), Some("user@1000.service/init.scope")),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/backup.service", Some("user@1000.service"), Some("user-1000.slice"), Some("user@1000.service/backup.service")),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-4711.scope", Some("user@1000.service"), Some("user-1000.slice"), Some("user@1000.service/app-gnome-firefox-4711.scope")),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice", Some("user@1000.service"), Some("user-1000.slice"), None),
        ("/user.slice/user-1000.slice/user@1000.service", Some("user@1000.service"), Some("user-1000.slice"), None),
        // Escaped, because the kernel has files of these names.
        ("/system.slice/_cpu.service", Some("cpu.service"), Some("system.slice"), None),
        ("/system.slice/__x.service", Some("_x.service"), Some("system.slice"), None),
        ("/_cpu.slice/x.service", Some("x.service"), Some("cpu.slice"), None),
        // Behind something that is neither slice nor unit, names prove nothing.
        ("/docker/ID/system.slice/nginx.service", None, None, None),
        ("/lxc.payload.web/system.slice/nginx.service", None, None, None),
        ("/system.slice/foo.service/system.slice/nginx.service", Some("foo.service"), Some("system.slice"), None),
        ("/user.slice/user-1000.slice/user@1000.service/x/nginx.service", Some("user@1000.service"), Some("user-1000.slice"), None),
        ("/system.slice/user@root.service/app.slice/x.service", Some("user@root.service"), Some("system.slice"), None),
        // No unit is called so.
        ("/batch/job-7", None, None, None),
        ("/system.slice/.service", None, Some("system.slice"), None),
        ("/system.slice/@.service", None, Some("system.slice"), None),
        ("/system.slice/a b.service", None, Some("system.slice"), None),
        ("/system.slice/basic.target", None, Some("system.slice"), None),
        ("/.slice/x.service", None, None, None),
    ];
    for (path, unit, slice, user_unit) in table {
        let found = placement(path);
        assert_eq!(
            (
                found.unit.as_deref(),
                found.slice.as_deref(),
                found.user_unit.as_deref()
            ),
            (unit, slice, user_unit),
            "{path}"
        );
    }
}

#[test]
fn containers_are_known_by_the_names_of_their_groups() {
    #[rustfmt::skip]
    let table = [
        // path, engine, name where it is not the id
        ("/system.slice/docker-ID.scope", Some("docker"), None),
        ("/system.slice/docker-ID.scope/system.slice/nginx.service", Some("docker"), None),
        ("/docker/ID", Some("docker"), None),
        ("/docker/ID/init.scope", Some("docker"), None),
        ("/machine.slice/libpod-ID.scope", Some("podman"), None),
        ("/machine.slice/libpod-ID.scope/container", Some("podman"), None),
        ("/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope/container", Some("podman"), None),
        ("/libpod_parent/libpod-ID", Some("podman"), None),
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3d1bf5a2_7d34_4d4e_9d3e_0d2f0f5f7f11.slice/cri-containerd-ID.scope", Some("containerd"), None),
        ("/kubepods.slice/kubepods-pod3d1bf5a2_7d34_4d4e_9d3e_0d2f0f5f7f11.slice/crio-ID.scope", Some("cri-o"), None),
        ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod3d1bf5a2_7d34_4d4e_9d3e_0d2f0f5f7f11.slice/docker-ID.scope", Some("docker"), None),
        ("/kubepods/burstable/pod3d1bf5a2-7d34-4d4e-9d3e-0d2f0f5f7f11/ID", Some("kubernetes"), None),
        ("/kubepods/pod3d1bf5a2-7d34-4d4e-9d3e-0d2f0f5f7f11/ID/x", Some("kubernetes"), None),
        ("/kubepods/besteffort/pod3d1bf5a2-7d34-4d4e-9d3e-0d2f0f5f7f11/crio-ID", Some("cri-o"), None),
        ("/system.slice/nerdctl-ID.scope", Some("nerdctl"), None),
        ("/machine.slice/machine-web.scope/payload/system.slice/nginx.service", Some("systemd-nspawn"), Some("web")),
        ("/machine.slice/machine-web\\x2d1.scope", Some("systemd-nspawn"), Some("web-1")),
        ("/machine.slice/systemd-nspawn@web.service/payload", Some("systemd-nspawn"), Some("web")),
        ("/machine.slice/systemd-nspawn@web\\x2d1.service/payload/init.scope", Some("systemd-nspawn"), Some("web-1")),
        ("/lxc.payload.web1", Some("lxc"), Some("web1")),
        ("/lxc.payload.web1/system.slice/nginx.service", Some("lxc"), Some("web1")),
        ("/lxc/101/ns/system.slice/ssh.service", Some("lxc"), Some("101")),
        // Helpers on the host's side of a container.
        ("/machine.slice/libpod-conmon-ID.scope", None, None),
        ("/system.slice/crio-conmon-ID.scope", None, None),
        ("/system.slice/containerd.service", None, None),
        ("/system.slice/docker.service", None, None),
        ("/system.slice/web.service/supervisor", None, None),
        ("/machine.slice/machine-web.scope/supervisor", None, None),
        ("/machine.slice/systemd-nspawn@web.service/supervisor", None, None),
        ("/lxc.monitor.web1", None, None),
        ("/machine.slice/machine-qemu\\x2d1\\x2ddebian.scope", None, None),
        ("/machine.slice/machine-qemu\\x2d1\\x2ddebian.scope/libvirt/emulator", None, None),
        // A user's or a service's own, by whatever name.
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope", None, None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/libpod-ID.scope/container", None, None),
        ("/user.slice/user-1000.slice/session-3.scope/docker-ID.scope", None, None),
        ("/system.slice/web.service/libpod-payload-ID", None, None),
        ("/system.slice/web.service/docker/ID", None, None),
        ("/system.slice/web.service/kubepods/podx/ID", None, None),
        // Not of these engines' making.
        ("/system.slice/docker-proxy.scope", None, None),
        ("/system.slice/IDx.scope", None, None),
        ("/some/ID", None, None),
        ("/kubepods/burstable/ID", None, None),
        ("/machine.slice/machine-\\x2.scope", None, None),
        ("/machine.slice/machine-.scope", None, None),
        ("/machine.slice/machine-\\x+d.scope", None, None),
        ("/user.slice/lxc/101", None, None),
        ("/", None, None),
    ];
    for (path, engine, name) in table {
        let found = placement(path).container;
        let expected = engine.map(|engine| (engine, name.unwrap_or(ID)));
        assert_eq!(
            found.as_ref().map(|c| (c.engine, c.id.as_str())),
            expected,
            "{path}"
        );
    }
}

#[test]
fn a_container_cannot_give_itself_another_name() {
    let other = ID.replace("4f", "00");
    let path = format!("/system.slice/docker-{ID}.scope/machine.slice/libpod-{other}.scope");
    let container = Placement::of(&path).container.unwrap();
    assert_eq!(container.to_string(), format!("docker:{ID}"));
}

#[test]
fn rules_believe_only_what_the_system_has_named() {
    let id = ID;
    let users = "/user.slice/user-1000.slice/user@1000.service";
    #[rustfmt::skip]
    let believed = [
        "/system.slice/docker-ID.scope/system.slice/nginx.service",
        "/docker/ID/init.scope",
        "/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope/container",
        "/libpod_parent/libpod-ID",
        "/kubepods.slice/kubepods-pod3d1bf5a2.slice/crio-ID.scope",
        "/kubepods/burstable/pod3d1bf5a2/ID",
        "/kubepods/pod3d1bf5a2/ID/x",
        "/kubepods/besteffort/pod3d1bf5a2/crio-ID",
        "/machine.slice/systemd-nspawn@web.service/payload",
        "/machine.slice/machine-web\\x2d1.scope",
        "/lxc.payload.web1/system.slice/nginx.service",
        "/lxc/101/ns",
    ];
    for path in believed {
        let path = path.replace("ID", id);
        let found = container_for_rules(&path);
        assert!(found.is_some(), "{path}");
        assert_eq!(found, Placement::of(&path).container, "{path}");
    }
    // Containers that reports may name and rules must not, since somebody else than root or
    // the system's manager can make a directory there.
    for path in [
        format!("{users}/user.slice/docker-{id}.scope"),
        format!("{users}/user.slice/libpod-{id}.scope/container"),
        format!("{users}/machine.slice/machine-web.scope"),
        format!("{users}/lxc.payload.web1"),
        format!("/system.slice/web.service/libpod-payload-{id}"),
        format!("/system.slice/web.service/docker-{id}.scope"),
        format!("/batch/docker-{id}.scope"),
        format!("/system.slice/docker/{id}"),
        format!("/user/docker/{id}"),
        format!("/docker/x/{id}"),
        format!("/docker/docker-{id}.scope"),
        format!("/kubepods/burstable/pod1/{id}x/pod2/{id}"),
        format!("/kubepods/burstable/x/pod2/{id}"),
        format!("/machine.slice/machine-web.scope/supervisor/docker-{id}.scope"),
        "/machine.slice/machine-web.scope/supervisor".to_owned(),
        "/machine.slice/machine-a\\x2fb.scope".to_owned(),
        format!("system.slice/docker-{id}.scope"),
        "/".to_owned(),
        "".to_owned(),
    ] {
        assert_eq!(container_for_rules(&path), None, "{path}");
    }
}

#[test]
fn the_cut_end_of_a_path_does_not_count() {
    let cut = Placement::of_cut("/system.slice/nginx.service");
    assert_eq!(
        (cut.unit, cut.slice.as_deref()),
        (None, Some("system.slice"))
    );
    let cut = Placement::of_cut("/system.slice/nginx.service/a-long-name-that-is-c");
    assert_eq!(cut.unit.as_deref(), Some("nginx.service"));
    assert_eq!(Placement::of_cut(""), Placement::default());
}

/// Paths in which everything that matters to the rules for units occurs.
fn paths() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a.slice",
        "a-b.slice",
        "_cpu.slice",
        ".slice",
        "x.service",
        "_cpu.service",
        "__x.service",
        "x@1.service",
        "session-3.scope",
        "init.scope",
        "user@1000.service",
        "user@root.service",
        "web.mount",
        "basic.target",
        "docker",
        "@.service",
    ]);
    proptest::collection::vec(part, 0..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

proptest! {
    /// A report never names a unit that a rule with this unit's name would not match.
    #[test]
    fn reports_and_policies_mean_the_same_by_a_unit(path in paths()) {
        let placement = Placement::of(&path);
        for unit in [&placement.unit, &placement.user_unit].into_iter().flatten() {
            let pattern = UnitPattern::parse(unit).unwrap();
            prop_assert!(pattern.matches(path.as_bytes()), "{unit}");
        }
        for name in ["x.service", "cpu.service", "_x.service", "x@1.service", "session-3.scope", "web.mount"] {
            let matches = UnitPattern::parse(name).unwrap().matches(path.as_bytes());
            prop_assert_eq!(matches, placement.unit.as_deref() == Some(name), "{}", name);
            let user_name = format!("user@1000.service/{name}");
            let matches = UnitPattern::parse(&user_name).unwrap().matches(path.as_bytes());
            prop_assert_eq!(matches, placement.user_unit.as_deref() == Some(&*user_name), "{}", user_name);
        }
    }
}
