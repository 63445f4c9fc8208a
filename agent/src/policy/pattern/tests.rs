//! What patterns mean, and what is wrong with those that mean nothing.

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
