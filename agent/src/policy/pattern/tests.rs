//! Meaning of patterns, and the mistakes in those that mean nothing.

use super::*;

fn unit(pattern: &str, path: &str) -> bool {
    UnitPattern::parse(pattern)
        .unwrap()
        .matches(path.as_bytes())
}

#[test]
fn malformed_globs() {
    for wrong in ["/a[b", "/a[", "/[b-a]", "/[ä]", "/[a/]", "/a***", "/a\0"] {
        assert!(ExecutablePattern::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn executables_are_absolute_paths() {
    for wrong in ["nginx", "", "/", "//x", "/a/", "/a/../b", "/./a"] {
        assert!(ExecutablePattern::parse(wrong).is_err(), "{wrong}");
    }
    assert!(ExecutablePattern::parse(&format!("/{}", "x".repeat(EXECUTABLE_PATH))).is_err());
    assert!(ExecutablePattern::parse("/**/x").is_ok());
}

#[test]
fn units_of_the_system() {
    assert!(unit("nginx.service", "/system.slice/nginx.service"));
    assert!(unit("nginx.service", "/nginx.service"));
    assert!(unit("nginx.service", "/system.slice/nginx.service/worker"));
    assert!(unit(
        "nginx.service",
        "/a.slice/a-b.slice/nginx.service/x.slice/y"
    ));
    assert!(unit(
        "export@*.service",
        "/system.slice/system-export.slice/export@de-1.service"
    ));
    assert!(!unit("nginx.service", "/system.slice/nginx.service.d"));
    assert!(!unit("nginx.service", "/system.slice/xnginx.service"));
    assert!(!unit("nginx.service", "nginx.service"));
    assert!(!unit("nginx.service", "/"));
    assert!(!unit("nginx.service", ""));
    assert!(!unit("n.service", "/.slice/n.service"));
}

#[test]
fn a_delegated_subtree_cannot_name_a_unit_of_the_system() {
    let users = "/user.slice/user-1000.slice/user@1000.service";
    assert!(!unit("nginx.service", &format!("{users}/nginx.service")));
    assert!(!unit(
        "nginx.service",
        &format!("{users}/system.slice/nginx.service")
    ));
    assert!(!unit(
        "nginx.service",
        "/docker/0123/system.slice/nginx.service"
    ));
    assert!(!unit(
        "nginx.service",
        "/machine.slice/m.scope/system.slice/nginx.service"
    ));
    assert!(!unit(
        "system.slice",
        &format!("{users}/system.slice/x.service")
    ));
}

#[test]
fn units_of_a_users_manager() {
    let users = "/user.slice/user-1000.slice/user@1000.service";
    let own = "user@1000.service/backup.service";
    assert!(unit(own, &format!("{users}/app.slice/backup.service")));
    assert!(unit(own, &format!("{users}/backup.service/x")));
    assert!(unit(
        "user@*.service/backup.service",
        &format!("{users}/backup.service")
    ));
    assert!(unit(
        "user@1000.service/app.slice",
        &format!("{users}/app.slice/x.service")
    ));
    assert!(unit(
        "user@1000.service",
        &format!("{users}/app.slice/x.service")
    ));
    assert!(!unit(own, "/system.slice/backup.service"));
    assert!(!unit(own, users));
    assert!(!unit(
        "user@1001.service/backup.service",
        &format!("{users}/backup.service")
    ));
    assert!(!unit(own, &format!("/x.service{users}/backup.service")));
}

#[test]
fn names_that_systemd_escapes() {
    assert!(unit("cpu.service", "/system.slice/_cpu.service"));
    assert!(unit("_x.service", "/system.slice/__x.service"));
    assert!(unit("io.slice", "/_io.slice/x.service"));
    assert!(!unit("cpu.service", "/system.slice/__cpu.service"));
}

#[test]
fn slices_contain_everything_within() {
    assert!(unit(
        "user.slice",
        "/user.slice/user-1000.slice/session-1.scope"
    ));
    assert!(unit(
        "user-1000.slice",
        "/user.slice/user-1000.slice/session-1.scope"
    ));
    assert!(unit(
        "user-*.slice",
        "/user.slice/user-1000.slice/user@1000.service/a/b"
    ));
    assert!(unit("*.slice", "/a.slice"));
    assert!(unit("-.slice", "/"));
    assert!(unit("-.slice", "/x/y"));
    assert!(!unit("user-*.slice", "/user.slice"));
    assert!(!unit("user-1000.slice", "/user-1000.slice"));
    assert!(!unit(
        "user-1000.slice",
        "/user.slice/x.slice/user-1000.slice"
    ));
}

#[test]
fn a_star_at_the_end_is_any_type_but_slices() {
    assert!(unit("export@*", "/system.slice/export@1.service"));
    assert!(unit("export*", "/system.slice/export.scope/x"));
    assert!(unit("*", "/x.service"));
    assert!(!unit("export*", "/export.slice/x.service"));
    assert!(!unit("*", "/docker/0123"));
}

#[test]
fn patterns_that_can_match_nothing_are_refused() {
    let fault = |text| UnitPattern::parse(text).unwrap_err();
    assert!(fault("nginx").help.unwrap().contains("`nginx.service`"));
    assert!(
        fault("export@.service")
            .help
            .unwrap()
            .contains("`export@*.service`")
    );
    assert!(
        fault("backup.timer")
            .help
            .unwrap()
            .contains("`backup.service`")
    );
    assert!(
        fault("nginx.ser*")
            .help
            .unwrap()
            .contains("`nginx.service`")
    );
    assert!(
        fault("system.slice/nginx.service")
            .help
            .unwrap()
            .contains("named alone")
    );
    for wrong in [
        "",
        "/nginx.service",
        "a**.service",
        ".service",
        "user@.service/x.service",
        "user@1.service/a/x.service",
        "x.[s]ervice",
        "nginx.servic",
    ] {
        assert!(UnitPattern::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn control_groups_contain_what_is_in_them() {
    let group = |pattern: &str, path: &str| {
        CgroupPattern::parse(pattern)
            .unwrap()
            .matches(path.as_bytes())
    };
    assert!(group("/batch/*", "/batch/job-7"));
    assert!(group("/batch/*", "/batch/job-7/worker/3"));
    assert!(!group("/batch/*", "/batch"));
    assert!(!group("/batch/job", "/batch/job-7"));
    assert!(!group("/batch/job", "/x/batch/job"));
    assert!(group("/**/job", "/a/b/job/c"));
    assert!(group("/", "/"));
    assert!(group("/", "/a/b"));
    assert!(!group("/", ""));
    let fault = |text| CgroupPattern::parse(text).unwrap_err().help.unwrap();
    assert!(fault("x.service").contains("`/system.slice/x.service`"));
    assert!(fault("/sys/fs/cgroup/batch").contains("leave out `/sys/fs/cgroup`"));
    for wrong in ["", "/a/", "//", "/a/../b", "/a[", "/sys/fs/cgroup"] {
        assert!(CgroupPattern::parse(wrong).is_err(), "{wrong}");
    }
    assert!(CgroupPattern::parse("/sys/fs/cgroups").is_ok());
}

#[test]
fn containers_by_engine_id_and_name() {
    const ID: &str = "4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042";
    let is_it = |pattern: &str, path: &str| {
        ContainerPattern::parse(pattern)
            .unwrap()
            .matches(path.replace("ID", ID).as_bytes())
    };
    assert!(is_it(
        "docker:4f2a9c01b7de*",
        "/system.slice/docker-ID.scope/x"
    ));
    assert!(is_it("4f2a9c01b7de*", "/machine.slice/libpod-ID.scope"));
    assert!(is_it(ID, "/docker/ID"));
    assert!(is_it("*", "/lxc.payload.web1/x"));
    assert!(is_it(
        "systemd-nspawn:web-?",
        "/machine.slice/systemd-nspawn@web\\x2d1.service/payload"
    ));
    assert!(!is_it("podman:*", "/system.slice/docker-ID.scope"));
    assert!(!is_it("docker:*", "/system.slice/docker.service"));
    assert!(!is_it(
        "*",
        "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope"
    ));
    let fault = |text| ContainerPattern::parse(text).unwrap_err().help.unwrap();
    assert!(fault("4f2a9c01b7de").contains("`4f2a9c01b7de*`"));
    assert!(fault("doker:x*").contains("docker, podman"));
    for wrong in ["", "docker:", "docker:a/b", "a**", "docker:[b-a]"] {
        assert!(ContainerPattern::parse(wrong).is_err(), "{wrong}");
    }
    assert!(ContainerPattern::parse("lxc:4f2a9c01b7de").is_ok());
}

#[test]
fn a_container_is_found_where_its_engine_puts_it() {
    const ID: &str = "4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de4f2a9c01b7de0042";
    for engine in container::ENGINES {
        let name = match engine {
            "systemd-nspawn" | "lxc" => "web-1",
            _ => ID,
        };
        let text = format!("{engine}:{name}");
        let path = container::cgroup_of_container(&text).unwrap();
        let pattern = ContainerPattern::parse(&text).unwrap();
        assert!(pattern.matches(path.as_bytes()), "{path}");
    }
    for wrong in [ID, "docker:web", "docker:4f2a*", "lxc:a/b", "lxc:", "x:y"] {
        assert!(container::cgroup_of_container(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_unit_is_found_where_systemd_puts_it() {
    for (name, path) in [
        ("nginx.service", "/system.slice/nginx.service"),
        ("cpu.service", "/system.slice/_cpu.service"),
        ("user-1000.slice", "/user.slice/user-1000.slice"),
        ("-.slice", "/"),
        (
            "user@1000.service/x.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service",
        ),
    ] {
        assert_eq!(cgroup_of_unit(name).unwrap(), path);
        assert!(unit(name, path), "{name}");
    }
    assert!(cgroup_of_unit("nginx*").is_err());
    assert!(cgroup_of_unit("nginx").is_err());
}
