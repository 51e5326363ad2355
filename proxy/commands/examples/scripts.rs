//! Runs command scripts against a live server: `cargo run -p commands --example scripts
//! -- 127.0.0.1:6379 FILE...`
//!
//! Each script has its own connection and begins with FLUSHALL, so never run this against
//! a server whose data you want to keep. Against a Redis, the output shows where Bridle's
//! specification and Redis differ.

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use commands::testscript::TestScript;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(address) = args.next() else {
        eprintln!("usage: scripts ADDRESS FILE...");
        return ExitCode::FAILURE;
    };
    let mut failed = 0;
    for path in args {
        if let Err(fault) = run(&address, &path) {
            failed += 1;
            println!("{path}: {fault}");
        }
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(address: &str, path: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let script = TestScript::parse(&text)?;
    if script.pure {
        return Ok(());
    }
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|error| error.to_string())?;
    script.run(stream).map_err(|fault| match script.differs {
        Some(why) => format!("{fault}\n    (differs from Redis: {why})"),
        None => fault,
    })
}
