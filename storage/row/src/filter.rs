//! Tests of sortkeys.

use crate::glob;
use crate::op::Filter;
use crate::view::Tx;

/// The approximate time of examining one member, ns.
const MEMBER_NS: u64 = 1000;

impl Filter {
    /// The cost of testing a sortkey, in members that could be walked past in that time,
    /// roughly; and true if there is time for it.
    pub(crate) fn weight(&self, tx: &Tx<'_>, name: &[u8]) -> (u64, bool) {
        match self {
            Filter::Glob(pattern) if pattern != "*" => {
                let ns = glob::worst_case_ns(pattern, name);
                (1 + ns / MEMBER_NS, tx.view.has_time_for(ns))
            }
            _ => (1, true),
        }
    }

    /// True if a sortkey passes.
    pub(crate) fn passes(&self, name: &[u8]) -> bool {
        match self {
            Filter::None => true,
            Filter::Prefix(with) => name.starts_with(with),
            Filter::Suffix(with) => name.ends_with(with),
            Filter::Contains(with) => contains(name, with),
            Filter::Glob(pattern) => pattern == "*" || glob::matches(pattern, name),
        }
    }
}

/// True if `outer` contains `inner`.
pub(crate) fn contains(outer: &[u8], inner: &[u8]) -> bool {
    memchr::memmem::find(outer, inner).is_some()
}
