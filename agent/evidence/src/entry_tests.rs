//! Reading entries back.

use super::*;

const SALT_TEXT: &str = "30313233343536373839616263646566";

fn entry_of(text: &[u8]) -> Entry {
    Entries::new(text).read().unwrap().unwrap()
}

#[test]
fn the_three_formats_of_a_record_have_one_digest() {
    let own = format!(
        r#"{{"event":"flow","seq":3,"salt":"{SALT_TEXT}","exe":"/a\nb","priority":6,"message":"m"}}"#
    );
    let journal = format!(
        "{{\"_PID\":\"1\",\"TREFOIL_SEQ\":\"3\",\"TREFOIL_EVENT\":\"flow\",\"PRIORITY\":\"6\",\
         \"TREFOIL_SALT\":\"{SALT_TEXT}\",\"TREFOIL_EXE\":[47,97,10,98],\
         \"MESSAGE_ID\":\"{}\",\"MESSAGE\":\"m\"}}",
        KINDS[0].1
    );
    let mut export = format!(
        "__CURSOR=x\nTREFOIL_SEQ=3\nTREFOIL_EVENT=flow\nPRIORITY=6\nTREFOIL_SALT={SALT_TEXT}\n\
         MESSAGE_ID={}\nMESSAGE=m\nTREFOIL_EXE\n",
        KINDS[0].1
    )
    .into_bytes();
    export.extend(4_u64.to_le_bytes());
    export.extend(b"/a\nb\n\n");
    let entry = entry_of(own.as_bytes());
    assert_eq!(entry, entry_of(journal.as_bytes()));
    assert_eq!(entry, entry_of(&export));
    assert!(entry.digest().is_some());
    assert_eq!(
        (entry.number("seq"), entry.text("message")),
        (Some(3), Some("m"))
    );
    let without = own.replace("salt", "sal");
    assert_eq!(entry_of(without.as_bytes()).digest(), None);
}

#[test]
fn what_is_no_record_is_told_and_passed_over() {
    let others = b"{\"MESSAGE\":\"x\"}\n\n_PID=1\nMESSAGE=y\n\n{\"event\":\"flow\",\"seq\":1}\n";
    let mut entries = Entries::new(&others[..]);
    assert_eq!(entries.read().unwrap().unwrap().number("seq"), Some(1));
    assert!(entries.read().unwrap().is_none());
    let mut broken =
        Entries::new(&b"{\"event\nA\n\x05\0\0\0\0\0\0\0ab\n{\"event\":\"flow\"}\n"[..]);
    assert!(matches!(broken.read(), Err(EntryError::Form)));
    assert!(broken.read().is_err());
    let mut long = Entries::new(&b"A\n\xff\xff\xff\xff\xff\xff\xff\xff"[..]);
    assert!(matches!(long.read(), Err(EntryError::Long)));
}

#[test]
fn what_goes_on_without_a_record_is_read_no_further() {
    for text in ["y\n", "\n", "a=b\n", "{}\n", "{\n", "a=b\n\n"] {
        let source = text.repeat(2_000_000 / text.len());
        let mut entries = Entries::new(source.as_bytes());
        let mut n_read = 0;
        let error = loop {
            match entries.read() {
                Ok(read) => assert!(read.is_some(), "{text:?} was read to its end"),
                Err(error) if error.is_final() => break error.to_string(),
                Err(_) => n_read += 1,
            }
            assert!(n_read <= MAX_UNREADABLE.0 + 1, "{text:?}");
        };
        assert!(
            error.contains("more than 100000 lines"),
            "{text:?}: {error}"
        );
        assert!(entries.line() <= MAX_UNREADABLE.0 + 2 * MOST_FIELDS as u64);
    }
    // A journal may have more than that of others.
    let others = "MESSAGE=x\n\n".repeat(MAX_UNREADABLE.0 as usize) + "TREFOIL_EVENT=flow\n";
    let mut entries = Entries::new(others.as_bytes());
    assert!(entries.read().unwrap().is_some());
}

#[test]
fn a_salt_survives_its_text() {
    let bytes = *b"0123456789abcdef";
    assert_eq!(salt_text(&bytes), SALT_TEXT);
    assert_eq!(from_hex(SALT_TEXT.as_bytes()), Some(bytes));
    assert_eq!(from_hex::<16>(b"+0313233343536373839616263646566"), None);
    assert_eq!(from_hex::<2>(b"0102f"), None);
}
