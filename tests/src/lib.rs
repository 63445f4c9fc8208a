//! The lab: network namespaces in which a policy can be tried without harm.
