//! A web server for the clients of a region, and ssh for the gateways, on one host: nginx and sshd, as
//! Debian has them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use trefoil_lab::Record;
use trefoil_lab::vm::Vm;

use crate::sessions::{DUBLIN, DUBLIN6, LOGINS, gateways, ssh, with_people};
use crate::world::{HOST6, add_ipv6, detach};

const SERVED_AT: &str = "192.0.2.1";
/// Times that something is read.
const N_READS: usize = 8;

const REGION: &str = r#"[[rules]]
name      = "web for the region"
direction = "accepted"
from      = { unit = "nginx.service", ports = ["443/tcp"] }
to        = { networks = ["203.0.113.32/27", "2001:db8:f::40/123"] }
verdict   = "approve"
"#;

/// nginx with four workers.
const SERVER: &str = r#"set -eu
mkdir -p /srv/web
head -c 200000 /dev/zero > /srv/web/data
sed -i 's/^worker_processes.*/worker_processes 4;/' /etc/nginx/nginx.conf
echo 'server { listen 443; listen [::]:443; root /srv/web; }' > /etc/nginx/sites-enabled/default
systemctl start nginx
"#;

/// The command by which a client reads it all, from this address.
fn reads(from: &str) -> String {
    let at = if from.contains(':') { HOST6 } else { SERVED_AT };
    format!(
        "ip -n far route replace {at} dev far src {from} && \
         timeout 20 ip netns exec far bash -c 'exec 3<>/dev/tcp/{at}/443 && \
         printf \"GET /data HTTP/1.0\\r\\n\\r\\n\" >&3 && cat <&3 | wc -c'"
    )
}

/// Bytes that a client got, and what else was said.
fn read_by(vm: &mut Vm, from: &str) -> Result<(u64, String)> {
    let ended = vm.run(&reads(from))?;
    // Without an answer, the shell does not come as far as to count.
    Ok((
        ended.stdout.trim().parse().unwrap_or(0),
        format!("{ended:?}"),
    ))
}

fn refused(vm: &mut Vm, port: u16, to: &str) -> Result<Record> {
    let fields = format!(
        "-u trefoil TREFOIL_EVENT=violation TREFOIL_DIRECTION=accepted TREFOIL_SRC_PORT={port} \
         TREFOIL_DST_ADDR={to}"
    );
    vm.wait_until(&format!("{to} is told"), |vm| {
        Ok(vm.journal(&fields)?.pop())
    })
}

#[test]
fn nginx_answers_the_region_and_sshd_the_gateway_alone() -> Result<()> {
    const CLIENTS: [&str; 4] = [
        "203.0.113.40",
        "203.0.113.41",
        "2001:db8:f::40",
        "2001:db8:f::41",
    ];
    const OTHERS: [&str; 2] = ["203.0.113.100", "2001:db8:f::100"];
    let policy = gateways("enforce") + LOGINS + REGION;
    let mut vm = with_people("web", &policy)?;
    add_ipv6(&mut vm, &[CLIENTS[2], CLIENTS[3], OTHERS[1], DUBLIN6])?;
    vm.write("/run/server", SERVER)?;
    vm.ok("sh /run/server")?;
    for client in CLIENTS.iter().cycle().take(N_READS) {
        let (bytes, said) = read_by(&mut vm, client)?;
        ensure!(bytes > 200_000, "{client}: {said}");
    }
    for other in OTHERS {
        let (bytes, said) = read_by(&mut vm, other)?;
        ensure!(bytes == 0, "{other}: {said}");
        refused(&mut vm, 443, other)?;
    }
    for (gateway, client) in [(DUBLIN, CLIENTS[0]), (DUBLIN6, CLIENTS[2])] {
        vm.ok(&ssh("bob", gateway, "true"))?;
        let ended = vm.run(&format!("timeout 5 {}", ssh("bob", client, "true")))?;
        ensure!(ended.code != 0, "{client} is let in: {ended:?}");
        refused(&mut vm, 22, client)?;
    }

    let master: u64 = vm.ok("cat /run/nginx.pid")?.trim().parse()?;
    let user = vm.ok("id --user www-data")?;
    detach(&mut vm)?;
    let records = vm.journal("-u trefoil TREFOIL_STATE=closed TREFOIL_SRC_PORT=443")?;
    let served: Vec<&Record> = records
        .iter()
        // By IPv6, the answer to a request has a record of its own: no socket's hook sees it here.
        .filter(|one| {
            let is_request =
                one.is("TREFOIL_ATTRIBUTION", "inferred") && one.is("TREFOIL_PACKETS_OUT", "1");
            one.is("TREFOIL_VERDICT", "approved") && !is_request
        })
        .collect();
    let mut to = BTreeSet::new();
    for record in &served {
        for (field, expected) in [
            ("TREFOIL_RULE", "web for the region"),
            ("TREFOIL_EXE", "/usr/sbin/nginx"),
            ("TREFOIL_UNIT", "nginx.service"),
            ("TREFOIL_UID", user.trim()),
            ("TREFOIL_ATTRIBUTION", "direct"),
            ("TREFOIL_DIRECTION", "accepted"),
        ] {
            ensure!(record.is(field, expected), "{field}: {record}");
        }
        ensure!(!record.is("TREFOIL_PID", master), "{record}");
        ensure!(record.number("TREFOIL_BYTES_OUT")? > 200_000, "{record}");
        to.insert(record.text("TREFOIL_DST_ADDR"));
    }
    ensure!(served.len() == N_READS, "{served:#?}");
    ensure!(to == CLIENTS.map(str::to_owned).into(), "{to:?}");
    for gateway in [DUBLIN, DUBLIN6] {
        let logins = vm.journal(&format!(
            "-u trefoil TREFOIL_STATE=closed TREFOIL_SRC_PORT=22 TREFOIL_DST_ADDR={gateway}"
        ))?;
        let login = logins.first().context("no record of the login")?;
        ensure!(login.is("TREFOIL_VERDICT", "gateway"), "{login}");
    }
    Ok(())
}
