//! The test kit for whole processes: starts the built `bridle`, talks RESP to it, kills
//! it.
//!
//! # Invariants
//! - Everything listens on 127.0.0.1 on ports that the kernel gave, or in a network of
//!   the test's own; only processes started here are ended here.
//! - A process started here does not outlive its [`Server`] or [`cluster::Cluster`].
//!
//! What proves a cluster: [`workload`] writes down what clients saw while [`nemesis`]
//! breaks things, [`lin`] judges it; [`netns`] is the network that can be broken.

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

/// What is answered to a command whose keys lie in several partitions and must not.
pub const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot: they lie in \
                             several partitions, and nothing was done. Keys with a common {tag} \
                             lie in one, and so do all keys of a table that has only one \
                             (tables.partitions, bridle admin create --partitions)";
