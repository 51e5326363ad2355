//! The test kit for whole processes: starts the built `bridle`, sends it commands, and
//! kills it.
//!
//! # Invariants
//! - Everything listens on 127.0.0.1 on ports chosen by the kernel, or in a network of
//!   the test's own; the kit ends only processes that it started.
//! - A process started here does not outlive its [`Server`] or [`cluster::Cluster`].
//!
//! Proofs of a cluster: [`workload`] records a history of client calls while [`nemesis`]
//! injects faults, and [`lin`] checks that it is linearizable; [`netns`] is a network
//! with faulty links.

mod admin_cli;
mod client;
pub mod cluster;
pub mod lin;
pub mod nemesis;
pub mod netns;
mod server;
pub mod workload;

pub use admin_cli::{CommandOutput, admin_json, bridle, bridle_with, files, within};
pub use client::{Client, Value};
pub use server::{Server, ServerBuilder, binary};

/// The error of a command whose keys must be in one partition and are not.
pub const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot: they \
                                    are in several partitions, and nothing was done. Keys with a \
                                    common {tag} are in one partition, as are all keys of a table \
                                    with one partition (tables.partitions, bridle admin create \
                                    --partitions)";
