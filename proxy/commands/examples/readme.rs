//! Writes the command table into the README, between its markers: `make readme`, or
//! `cargo run -p commands --example readme -- README.md`
//!
//! `integration/tests/house.rs` fails when the README shows another table than this.

use std::process::ExitCode;

const BEGIN: &str = "<!-- commands -->\n";
const END: &str = "<!-- /commands -->\n";

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: readme FILE");
        return ExitCode::FAILURE;
    };
    match rewrite(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{path}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn rewrite(path: &str) -> Result<(), String> {
    let old = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (before, rest) = old.split_once(BEGIN).ok_or("there is no line <!-- commands -->")?;
    let (_, after) = rest.split_once(END).ok_or("there is no line <!-- /commands -->")?;
    let new = format!("{before}{BEGIN}{}{END}{after}", commands::docs::readme_table());
    std::fs::write(path, new).map_err(|error| error.to_string())
}
