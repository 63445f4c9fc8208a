//! Behaviour of an agent when somebody runs `trefoil detach` in the middle of it.

use trefoil::kernel::{Enforcement, Unattached};

#[test]
fn a_policy_that_comes_after_a_detach_is_not_put_in_force() {
    let kernel = Unattached::load(1).unwrap();
    kernel.begin(1, Enforcement::Always);
    assert!(kernel.put_in_force(2, Enforcement::Always));
    assert_eq!(kernel.control().generation, 2);
    kernel.stop_counting();
    assert!(!kernel.put_in_force(3, Enforcement::Always));
    assert!(kernel.was_detached());
    assert_eq!(kernel.control().generation, 2);
}
