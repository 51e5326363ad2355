//! Metadata: which tables there are, and the door through which an operator changes that.
//!
//! # Life of a change
//! 1. A command ([`state::Command`]) comes from the admin API ([`admin`]) or from the first write to `db0` to `db15` ([`Catalogue::ensure`](cluster::Catalogue::ensure)).
//! 2. Meta's leader stamps it and decides it on the applied state: a pure function gives changes or a refusal ([`state::State::decide`]).
//! 3. The changes become one entry, a finished write batch ([`record`]), of meta's own Raft group: group 0 of the node's log, beside the
//!    partitions' groups, with a store of its own.
//! 4. Once applied, the new catalogue is published ([`Meta::watch`]). Storage follows it: opens and closes partitions, takes over envs,
//!    destroys what is being dropped ([`Meta::dropped`] ends that). What storage has open is reported back ([`Meta::opened`]) and only then
//!    does a table show up in the [`Catalogue`](cluster::Catalogue) that proxies read.
//!
//! Nothing is half done after a crash: the catalogue says what there should be, and whoever follows it makes it so.
//!
//! # Invariants
//! - A drop survives a crash at any step (`tests/catalogue.rs`, `a_drop_is_resumed`).
//! - What was acknowledged is there after a restart (`tests/catalogue.rs`, `tables_survive_a_restart`).
//! - Commands are decided one at a time, each under the leadership under which it is proposed.
//! - openraft is not named here: `engine::raft` is all that meta knows of it (`integration/tests/house.rs`).

pub mod admin;
mod catalogue;
pub mod envs;
pub mod record;
pub mod state;

pub use catalogue::{Meta, MetaError, MetaOptions, Tables};
