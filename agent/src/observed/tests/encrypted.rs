//! Records of what the kernel has encrypted, which calls do not name.

use serde_json::json;

use super::{POLICY, judged};

#[test]
fn a_call_to_where_the_kernel_encrypts_is_judged_by_what_it_names() {
    let encrypted = |named: &str| {
        let differs = json!({ "protocol": "esp", "dst_port": null, "dst_named": named });
        let (judgement, _) = judged(POLICY, differs);
        (judgement.approves(), judgement.lacks().to_vec())
    };
    assert_eq!(encrypted("203.0.113.8"), (Some(true), vec![]));
    let translated = "whether the named address is translated";
    assert_eq!(encrypted("192.0.2.1"), (None, vec![translated]));
    // Packets that are not approved are not, whatever the call has named.
    let differs = json!({
        "protocol": "esp", "dst_addr": "192.0.2.1", "dst_port": null, "dst_named": "203.0.113.8",
    });
    assert_eq!(judged(POLICY, differs).0.approves(), Some(false));
    // Translation leaves the protocol as it is: where that goes decides.
    let translated = json!({ "dst_named": "192.0.2.1" });
    assert_eq!(judged(POLICY, translated).0.approves(), Some(true));
}
