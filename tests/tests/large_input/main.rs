//! Files of any size end quickly: they are taken within the stated memory, or refused with what to
//! do.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use trefoil_lab::Lab;
use trefoil_lab::program::Outcome;

mod database;

/// Memory that reading a file may take.
const MEMORY: &str = "--data=536870912";
/// Seconds of a processor after which a verb, as a debug build, does not end at all.
const TIME: &str = "--cpu=40";
/// As [`TIME`], for one that waits, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs a verb within that memory and that time.
fn bounded(lab: &Lab, words: &[&str]) -> Result<Outcome> {
    bounded_of(lab, &trefoil_lab::agent::trefoil()?, words)
}

/// As [`bounded`], for another program.
fn bounded_of(lab: &Lab, program: &Path, words: &[&str]) -> Result<Outcome> {
    lab.program("/usr/bin/prlimit")?
        .args([MEMORY.as_ref(), TIME.as_ref(), program.as_os_str()])
        .args(words)
        .run_within(PATIENCE)
}

/// `trefoil-verify`, beside `trefoil`.
fn verifier() -> Result<PathBuf> {
    Ok(trefoil_lab::agent::trefoil()?.with_file_name("trefoil-verify"))
}

/// A key of a log that there is no record of.
const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

/// A record of a flow.
fn record(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!(
        "{{\"event\":\"flow\",\"seq\":{},\"time\":\"2026-01-01T00:00:01.000000Z\",\
         \"boot_id\":\"b\",\"host\":\"h\",\"state\":\"closed\",\"flow\":\"1-1-{number}\",\
         \"direction\":\"outbound\",\"protocol\":\"tcp\",\"dst_addr\":\"203.{a}.{b}.{c}\",\
         \"dst_port\":443,\"verdict\":\"unapproved\",\"outcome\":\"passed\",\"bytes_out\":100,\
         \"packets_out\":2,\"pid\":7,\"exe\":\"/x\",\"uid\":0,\"attribution\":\"direct\",\
         \"priority\":6,\"message\":\"m\"}}\n",
        number + 1
    )
}

fn explained(lab: &Lab, policy: &str) -> Result<Outcome> {
    let file = lab.file("large.toml");
    fs::write(&file, policy)?;
    let file = path(&file)?;
    bounded(
        lab,
        &["explain", "--policy", file, "--to", "203.0.113.7:443"],
    )
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

#[test]
fn a_hundred_thousand_networks_in_a_rule_are_taken() -> Result<()> {
    let lab = Lab::new()?;
    let mut policy =
        "mode = \"report\"\n[[rules]]\nname = \"all of them\"\nverdict = \"approve\"\n\
                      to = { networks = [\"203.0.113.7/32\""
            .to_owned();
    for number in 0..100_000_u32 {
        // Far apart: they cannot be put together.
        let [a, b, c, _] = (number << 8).to_be_bytes();
        write!(policy, ",\"1{a}.{b}.{c}.7/32\"")?;
    }
    policy.push_str("] }\n");
    let said = explained(&lab, &policy)?;
    ensure!(
        said.code == 0 && said.stdout.contains("all of them"),
        "{said:?}"
    );
    lab.close()
}

#[test]
fn patterns_that_need_too_much_are_refused_with_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let mut policy = "mode = \"report\"\n[[rules]]\nname = \"all of them\"\nverdict = \"deny\"\n\
                      from = { exe = ["
        .to_owned();
    for number in 0..50 {
        let stars: Vec<String> = (0..20)
            .map(|part| format!("{}*", number * part % 7))
            .collect();
        write!(policy, "\"/{}\",", stars.concat())?;
    }
    policy.push_str("] }\n");
    let said = explained(&lab, &policy)?;
    ensure!(
        said.code == 78
            && said.stderr.contains("large.toml:")
            && said.stderr.contains("use fewer `*`"),
        "{said:?}"
    );
    lab.close()
}

#[test]
fn more_flows_than_are_read_at_a_time_are_refused_with_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let (records, policy) = (lab.file("flows.json"), lab.file("policy.toml"));
    fs::write(&policy, "mode = \"report\"\n")?;
    let lines: String = (0..300_000).map(record).collect();
    fs::write(&records, lines)?;
    let (records, policy) = (path(&records)?, path(&policy)?);
    for verb in [
        vec!["learn", records],
        vec!["check", policy, "--against", records],
        vec!["diff", policy, policy, records],
    ] {
        let said = bounded(&lab, &verb)?;
        let line = "flows.json:100001: there are more than 100000 flows";
        ensure!(
            said.code == 1 && said.stderr.contains(line),
            "{verb:?}: {said:?}"
        );
    }
    lab.close()
}

/// Files that end never, or not soon, each with words about it that a message has to have.
fn endless(lab: &Lab) -> Result<[(PathBuf, &'static [&'static str]); 3]> {
    let (pipe, sparse) = (lab.file("pipe"), lab.file("sparse"));
    mkfifo(&pipe, Mode::S_IRWXU)?;
    File::create(&sparse)?.set_len(1 << 40)?;
    Ok([
        ("/dev/zero".into(), &["device"]),
        (pipe, &["pipe"]),
        (sparse, &["without an end of line", "the most that is read"]),
    ])
}

#[test]
fn what_never_ends_is_refused_by_every_verb() -> Result<()> {
    const NEXT: [&str; 3] = ["; name ", "into a file first", "the most that is read"];
    let lab = Lab::new()?;
    let (records, policy) = (lab.file("flows.json"), lab.file("policy.toml"));
    fs::write(&policy, "mode = \"report\"\n")?;
    fs::write(&records, record(0))?;
    let (records, policy) = (path(&records)?, path(&policy)?);
    let (trefoil, verify) = (trefoil_lab::agent::trefoil()?, verifier()?);
    let (since, until) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    for (file, words) in endless(&lab)? {
        let file = path(&file)?;
        let statement = [
            "statement",
            "--since",
            since,
            "--until",
            until,
            "--key",
            KEY,
        ];
        for (program, verb) in [
            (&trefoil, vec!["explain", "--policy", file, "--to", "::1:1"]),
            (&trefoil, vec!["check", file]),
            (&trefoil, vec!["check", policy, "--config", file]),
            (&trefoil, vec!["check", policy, "--geo", file]),
            (&trefoil, vec!["check", policy, "--against", file]),
            (&trefoil, vec!["learn", file]),
            (&trefoil, vec!["diff", policy, policy, file]),
            (&trefoil, vec!["query", file, "--gateway-log", records]),
            (&trefoil, vec!["query", records, "--gateway-log", file]),
            (&trefoil, vec!["redact", file]),
            (&trefoil, vec!["redact", records, "--pseudonyms", file]),
            (&trefoil, vec!["run", "--config", file]),
            (&verify, vec!["--key", KEY, file]),
            (&verify, vec!["--key", file, records]),
            (&verify, vec!["--key", KEY, "--checkpoint", file, records]),
            (&verify, [&statement[..], &[file]].concat()),
        ] {
            let said = bounded_of(&lab, program, &verb)?;
            let has = |words: &[&str]| words.iter().any(|words| said.stderr.contains(words));
            ensure!(
                said.code > 0 && said.stderr.contains(file) && has(words) && has(&NEXT),
                "{verb:?}: {said:?}"
            );
        }
    }
    lab.close()
}

/// Runs a program within the bounds while somebody writes this line into a pipe without end.
fn bounded_while_fed(
    lab: &Lab,
    (text, pipe): (&str, &str),
    program: &Path,
    words: &[&str],
) -> Result<Outcome> {
    // The pipe has a writer from the start, and nobody is left who waits for a reader.
    let script = "text=$1 pipe=$2; shift 2; exec 3<> \"$pipe\"\n\
                  yes \"$text\" > \"$pipe\" 3>&- 2> /dev/null &\n\
                  \"$@\" 3>&-; code=$?; kill $! 2> /dev/null; exit $code";
    let words = [&["-c", script, "sh", text, pipe, path(program)?], words].concat();
    bounded_of(lab, Path::new("/bin/bash"), &words)
}

/// Lines that are no records, and of which there are always more.
#[test]
fn lines_that_are_no_records_are_refused_with_what_to_do() -> Result<()> {
    const WHY: [&str; 4] = [
        "cannot be read; name ",
        "are no records; name ",
        "more lines of a header than any log has; name ",
        "not a log of flows: ",
    ];
    const OTHERS: [&str; 4] = ["", "{}", "a=b", "#separator \\x09"];
    let lab = Lab::new()?;
    let (records, policy, pipe) = (
        lab.file("flows.json"),
        lab.file("policy.toml"),
        lab.file("fed"),
    );
    fs::write(&policy, "mode = \"report\"\n")?;
    fs::write(&records, record(0))?;
    mkfifo(&pipe, Mode::S_IRWXU)?;
    let (records, policy, pipe) = (path(&records)?, path(&policy)?, path(&pipe)?);
    let (trefoil, verify) = (trefoil_lab::agent::trefoil()?, verifier()?);
    let since = ["--since", "2026-01-01T00:00:00Z"];
    let period = [&since[..], &["--until", "2026-01-02T00:00:00Z"]].concat();
    for (program, verb, texts) in [
        (&trefoil, vec!["learn", pipe], &OTHERS[..]),
        (
            &trefoil,
            vec!["query", records, "--gateway-log", pipe],
            &OTHERS,
        ),
        (&verify, vec!["--key", KEY, pipe], &OTHERS),
        (&trefoil, vec!["check", policy, "--against", pipe], &[]),
        (&trefoil, vec!["diff", policy, policy, pipe], &[]),
        (&trefoil, vec!["query", pipe, "--gateway-log", records], &[]),
        (&trefoil, vec!["redact", pipe], &[]),
        (
            &verify,
            [&["statement"], &period[..], &["--key", KEY, pipe]].concat(),
            &[],
        ),
    ] {
        for text in [&["y"], texts].concat() {
            let said = bounded_while_fed(&lab, (text, pipe), program, &verb)?;
            let says_why = WHY.iter().any(|words| said.stderr.contains(words));
            ensure!(
                said.code > 0 && said.stderr.contains(pipe) && says_why,
                "{verb:?}, {text:?}: {said:?}"
            );
        }
    }
    lab.close()
}

#[test]
fn what_is_piped_is_read_to_its_end() -> Result<()> {
    let lab = Lab::new()?;
    let (records, named) = (lab.file("flows.json"), lab.file("named"));
    // More than a pipe holds at a time.
    fs::write(&records, (0..1_000).map(record).collect::<String>())?;
    mkfifo(&named, Mode::S_IRWXU)?;
    let (records, named) = (path(&records)?, path(&named)?);
    let shell = |program: &Path, words: &[&str], way: &str| -> Result<Outcome> {
        let script = format!("records=$1 named=$2; shift 2; {way}");
        let program = path(program)?;
        let words = [&["-c", &script, "sh", records, named, program], words].concat();
        bounded_of(&lab, Path::new("/bin/bash"), &words)
    };
    let (trefoil, verify) = (trefoil_lab::agent::trefoil()?, verifier()?);
    for (program, words) in [
        (&trefoil, &["learn"][..]),
        (&trefoil, &["redact"]),
        (&verify, &["--key", KEY]),
    ] {
        let expected = shell(program, words, "\"$@\" $records")?;
        ensure!(!expected.stdout.is_empty(), "{words:?}: {expected:?}");
        for way in [
            "\"$@\" - < $records",
            "cat $records | \"$@\" -",
            "cat $records | \"$@\" /dev/stdin",
            "(sleep 0.3; cat $records) | \"$@\" /dev/stdin",
            "\"$@\" <(cat $records)",
            "\"$@\" <(sleep 0.3; cat $records)",
            "(sleep 0.3; cat $records > $named) & \"$@\" $named",
        ] {
            let said = shell(program, words, way)?;
            ensure!(
                said.code == expected.code && said.stdout == expected.stdout,
                "{words:?}, {way}: {said:?} is not {expected:?}"
            );
        }
        for way in ["\"$@\" - < /dev/zero", "\"$@\" <(cat /dev/zero)"] {
            let said = shell(program, words, way)?;
            let line = "without an end of line";
            ensure!(
                said.code > 0 && said.stderr.contains(line),
                "{words:?}, {way}: {said:?}"
            );
        }
    }
    lab.close()
}

/// Largest policy, as trefoil-policy(5) has it.
const LARGEST_POLICY: usize = 4 << 20;

#[test]
fn a_policy_of_the_largest_size_ends_soon() -> Result<()> {
    let lab = Lab::new()?;
    let mut policy = "mode = \"report\"\n".to_owned();
    for number in 0_u32.. {
        let [_, a, b, c] = number.to_be_bytes();
        let before = policy.len();
        writeln!(
            policy,
            "[[rules]]\nname = \"rule {number}\"\nverdict = \"approve\"\n\
             from = {{ exe = \"/opt/{number}/*\" }}\nto = {{ networks = [\"203.{a}.{b}.{c}/32\"] }}"
        )?;
        if policy.len() > LARGEST_POLICY {
            policy.truncate(before);
            break;
        }
    }
    let said = explained(&lab, &policy)?;
    // There are too many rules for the tables.
    ensure!(
        said.code == 78 && said.stderr.contains("large.toml:"),
        "{said:?}"
    );
    policy.push_str(&"#".repeat(LARGEST_POLICY + 1 - policy.len()));
    let said = explained(&lab, &policy)?;
    ensure!(
        said.code == 78 && said.stderr.contains("more than 4194304 bytes"),
        "{said:?}"
    );
    lab.close()
}

#[test]
fn country_data_takes_no_more_memory_than_is_stated() -> Result<()> {
    let lab = Lab::new()?;
    let (file, policy) = (lab.file("geoip"), lab.file("policy.toml"));
    fs::write(&policy, "mode = \"report\"\n")?;
    let (file, policy) = (path(&file)?, path(&policy)?);
    let words = [
        "explain",
        "--policy",
        policy,
        "--geo",
        file,
        "--to",
        "1.0.0.1:443",
    ];
    let code = |number: u32| ["DE", "IE"][number as usize % 2];
    // These need the most memory each, and are almost as many bytes as a file may have.
    let mut lines = String::new();
    for number in 0..2_000_000_u32 {
        let (a, b) = ((number >> 16) + 0x2001, number & 0xffff);
        let code = code(number);
        writeln!(
            lines,
            "{a:x}:{b:x}::,{a:x}:{b:x}:ffff:ffff:ffff:ffff:ffff:ffff,{code}"
        )?;
    }
    fs::write(file, lines)?;
    bounded(&lab, &words)?.success()?;
    // Shorter lines, of which more fit into a file of the largest size.
    let line = |number: u32| format!("{},{},{}\n", number << 9, number << 9 | 0xff, code(number));
    fs::write(file, (0..5_000_000).map(line).collect::<String>())?;
    let said = bounded(&lab, &words)?;
    ensure!(
        said.code == 78
            && said
                .stderr
                .contains("line 2000001: there are more than 2000000 ranges"),
        "{said:?}"
    );
    lab.close()
}
