//! Metadata: which servers and tables there are, where replicas live, and the door
//! through which an operator changes that.
//!
//! One, three or five processes form the meta group: a Raft group of its own, group 0 of
//! their logs, with a store of its own. The one that leads decides and tells; the others
//! say who leads. Standalone is the same with a group of one and one server in the same
//! process ([`MetaMode::Standalone`]).
//!
//! # What is kept and what is only known
//! What must survive is the group's state ([`state`]): servers, tables, placements, how
//! far creations and drops are. Who leads a partition, who is alive and how far replicas
//! are is what servers report ([`liveness`]): the leader keeps it in memory, and the next
//! one hears it anew.
//!
//! # Life of a change
//! 1. A command ([`state::MetaCommand`]) comes from the admin API ([`admin`]), from the first
//!    write to `db0` to `db15` ([`Catalogue::ensure`](cluster::Catalogue::ensure)), from
//!    a server that registers, or from the leader itself.
//! 2. Meta's leader stamps it and decides it on the applied state: a pure function gives
//!    changes or a refusal ([`state::State::decide`]); where replicas go is another one
//!    ([`placement`]).
//! 3. The changes become one entry, a finished write batch ([`codec`]), of meta's group.
//! 4. Once applied, state and reports are published as a [`image::MetadataImage`]. Every
//!    server and proxy holds a channel to the leader and is told what is new to it:
//!    assignments, tables, routes, addresses ([`cluster::meta_protocol`]).
//! 5. Servers make it so and report. When every partition of a new table has a leader,
//!    the table is made ready, and only then do proxies see it; when nothing is left
//!    anywhere of a dropped one, it is forgotten.
//!
//! Nothing is half done after a crash: the state says what there should be, and whoever
//! follows it makes it so.
//!
//! # Ids
//! The cluster's id is drawn by the first leader. The n-th configured meta has Raft id n
//! and is [`ServerId::of_meta`](cluster::ServerId::of_meta) n on the wire. Members are fixed by
//! the configuration: an empty directory forms the group only together with the others,
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
