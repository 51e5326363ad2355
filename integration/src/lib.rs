//! The test kit for whole processes: starts the built `bridle`, talks RESP to it, kills it.
//!
//! # Invariants
//! - Everything listens on 127.0.0.1 on ports that the kernel gave; only processes started here are ended here.
//! - A process started here does not outlive its [`Server`].

mod client;
mod operator;
mod server;

pub use client::{Client, Value};
pub use operator::{Said, bridle, files, within};
pub use server::{Server, ServerBuilder, binary};
