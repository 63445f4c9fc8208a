//! A database of country data of the largest size.

use std::fs;

use anyhow::{Result, ensure};
use trefoil_lab::Lab;

use crate::{bounded, path};

/// An MMDB file with a network for each of the first `depth` bits of an address of IPv6, and the record of each,
/// which stands in the file as often as it is given.
fn mmdb(depth: u32, records: &[Vec<u8>]) -> Vec<u8> {
    let n_nodes = (1_u32 << depth) - 1;
    let (mut places, mut data) = (Vec::new(), Vec::<u8>::new());
    for record in records {
        places.push(n_nodes + 16 + data.len() as u32);
        data.extend(record);
    }
    let mut file = Vec::new();
    for child in 1..=2 * n_nodes {
        let leaf = child.checked_sub(n_nodes);
        let to = leaf.map_or(child, |leaf| places[leaf as usize % places.len()]);
        file.extend(to.to_be_bytes());
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    file.extend(map(&[
        ("binary_format_major_version", unsigned(5, 2)),
        ("binary_format_minor_version", unsigned(5, 0)),
        ("build_epoch", vec![0x04, 0x02, 0x66, 0, 0, 0]),
        ("database_type", text("Large")),
        ("description", map(&[])),
        ("ip_version", unsigned(5, 6)),
        ("languages", vec![0x00, 0x04]),
        ("node_count", unsigned(6, n_nodes)),
        ("record_size", unsigned(5, 32)),
    ]));
    file
}

/// A number of this type of MMDB.
fn unsigned(kind: u8, number: u32) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let bytes = bytes.into_iter().skip_while(|&byte| byte == 0);
    let bytes: Vec<u8> = bytes.collect();
    [vec![kind << 5 | bytes.len() as u8], bytes].concat()
}

fn text(text: &str) -> Vec<u8> {
    // Longer ones say their length otherwise.
    assert!(text.len() < 29, "{text}");
    [&[2 << 5 | text.len() as u8], text.as_bytes()].concat()
}

fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![7 << 5 | entries.len() as u8];
    for (key, value) in entries {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes
}

#[test]
fn a_database_of_the_largest_size_ends_soon() -> Result<()> {
    let lab = Lab::new()?;
    let country = |code: &str| map(&[("country", map(&[("iso_code", text(code))]))]);
    let system = |number: u32| map(&[("asn", unsigned(6, number))]);
    let (policy, file) = (lab.file("policy.toml"), lab.file("large.mmdb"));
    fs::write(
        &policy,
        "mode = \"report\"\n[[rules]]\nname = \"there\"\nverdict = \"approve\"\n\
         to = { countries = [\"DE\"] }\n",
    )?;
    for (what, depth, records, expected) in [
        (
            "each with its own record",
            22,
            vec![country("DE"); 1 << 22],
            Ok("there"),
        ),
        (
            "as many countries as are read",
            20,
            vec![country("DE"), country("FR")],
            Ok("there"),
        ),
        (
            "more countries",
            22,
            vec![country("DE"), country("FR")],
            Err("ranges of countries"),
        ),
        (
            "more systems",
            22,
            vec![system(1), system(2)],
            Err("ranges of autonomous systems"),
        ),
    ] {
        let content = mmdb(depth, &records);
        ensure!(content.len() < 128 << 20, "{what}: {} bytes", content.len());
        fs::write(&file, content)?;
        let words = [
            "explain",
            "--policy",
            path(&policy)?,
            "--geo",
            path(&file)?,
            "--to",
            "[2a00::1]:443",
        ];
        let said = bounded(&lab, &words)?;
        let is_right = match expected {
            Ok(words) => said.code == 0 && said.stdout.contains(words),
            Err(words) => {
                said.code == 78 && said.stderr.contains(words) && said.stderr.contains("large.mmdb")
            }
        };
        ensure!(is_right, "{what}: {said:?}");
    }
    lab.close()
}
