//! Names that a policy can use without defining them: groups of countries, protocols, addresses
//! that are in no country, and destinations that are local whatever the policy says.

use trefoil::geo::{groups, special};
use trefoil::policy::local::always_local;
use trefoil::policy::service::Protocol;

use crate::roff;

/// The groups, with their members.
pub fn groups() -> String {
    let mut out = roff::prose(&format!("The members are those of {}.", groups::AS_OF));
    out += ".Bl -tag -width ADEQUATE\n";
    for group in groups::GROUPS {
        let members = groups::members(group).unwrap_or_default();
        out += &format!(
            ".It Li {group}\n{}",
            roff::prose(&format!("{}.", members.join(", ")))
        );
    }
    out + ".El\n"
}

/// Addresses that are in no country whatever the data says.
pub fn set_aside() -> String {
    let names: Vec<String> = special::SPECIAL
        .iter()
        .map(|block| format!("`{}` ({})", block.network(), block.purpose))
        .collect();
    roff::prose(&format!("As of {}: {}.", special::AS_OF, names.join(", ")))
}

/// The names of protocols.
pub fn protocols() -> String {
    let names: Vec<String> = (0..=u8::MAX)
        .map(|number| (number, Protocol(number).to_string()))
        .filter(|(number, name)| *name != number.to_string())
        .map(|(_, name)| format!("`{name}`"))
        .collect();
    roff::prose(&format!("{}.", names.join(", ")))
}

/// Destinations that are always local. Of IPv6 multicast, the scope decides.
pub fn local() -> String {
    let names: Vec<String> = always_local()
        .map(|network| network.to_string())
        .filter(|name| !name.starts_with("ff"))
        .map(|name| format!("`{name}`"))
        .collect();
    roff::prose(&format!(
        "{}, and IPv6 multicast of interface and link scope (`ff01::/16`, `ff02::/16` and those \
         with other flags).",
        names.join(", ")
    ))
}
