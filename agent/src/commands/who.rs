//! The person who types a verb.

use std::{env, fs};

use nix::unistd::{Uid, User, getuid};

/// Name of who logged in, whoever that became since.
pub fn who() -> String {
    const UNSET: u32 = u32::MAX;
    let login = fs::read_to_string("/proc/self/loginuid")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|uid| *uid != UNSET);
    let sudo = || env::var("SUDO_UID").ok()?.parse().ok();
    let uid = login.or_else(sudo).map_or_else(getuid, Uid::from_raw);
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}
