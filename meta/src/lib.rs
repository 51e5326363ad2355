//! Metadata: servers, tables and placements, and the API by which operators change them.
//!
//! One, three or five processes form the meta group: a Raft group of its own, group 0 of
//! their logs, with a store of its own. Its leader decides and sends updates; the others
//! name the leader. Standalone is a group of one with one server in the same process
//! ([`MetaMode::Standalone`]).
//!
//! # Durable and volatile state
//! The group's state ([`state`]) is durable: servers, tables, placements and the phases
//! of tables. Leaders, liveness and the progress of replicas are volatile: servers report
//! them ([`liveness`]), the leader keeps them in memory, and the next leader receives
//! them again.
//!
//! # Life of a change
//! 1. A command ([`state::MetaCommand`]) comes from the admin API ([`admin`]), from the
//!    first write to `db0` to `db15` ([`Catalogue::ensure`](cluster::Catalogue::ensure)),
//!    from a server that registers, or from the controller.
//! 2. The leader stamps it and decides it on the applied state: a pure function gives
//!    changes or a refusal ([`state::MetaState::decide`]); another one chooses servers
//!    for replicas ([`placement`]).
//! 3. The changes become one entry of meta's group, a finished write batch ([`codec`]).
//! 4. Once applied, state and reports are published as a [`image::MetadataImage`]. Every
//!    server and proxy holds a channel to the leader and receives what has changed:
//!    assignments, tables, routes, addresses ([`cluster::meta_protocol`]).
//! 5. Servers apply the change and report. A new table becomes ready, and visible to
//!    proxies, when each of its partitions has a leader; a dropped one is forgotten when
//!    no server holds a part of it.
//!
//! A crash leaves nothing half done: the state describes the goal, and the next leader
//! continues towards it.
//!
//! # Ids
//! The first leader draws the cluster's id. The n-th configured meta has Raft id n and is
//! [`ServerId::of_meta`](cluster::ServerId::of_meta) n on the wire. The configuration
//! fixes the members: an empty directory forms the group only together with the others,
//! which have the same list.
//!
//! # Invariants
//! - A create or a drop survives a crash at any step, and the loss of the leader
//!   (`tests/catalogue.rs`, `a_drop_is_resumed`; `tests/group.rs`,
//!   `a_create_is_finished_by_the_next_leader`,
//!   `reports_rebuild_routes_and_a_drop_is_resumed`).
//! - What was acknowledged is there after a restart (`tests/catalogue.rs`,
//!   `tables_survive_a_restart`).
//! - Commands are decided one at a time, each under the leadership under which it is
//!   proposed.
//! - openraft is not named here: `engine::raft` is all that meta knows of it
//!   (`integration/tests/tidy/layers.rs`).

pub mod admin;
pub mod codec;
mod controller;
mod embedded;
pub mod envs;
mod error;
pub mod image;
pub mod liveness;
mod meta;
mod operations;
pub mod placement;
mod server_channel;
pub mod state;
mod status;

pub use embedded::CommittedTables;
pub use error::MetaError;
pub use meta::{GROUP, Meta, MetaMode, MetaOptions};
