//! Writes the command tables into their page, between its markers: `make pages`, or
//! `cargo run -p commands --example commands_page -- proxy/COMMANDS.md`
//!
//! `integration/tests/tidy/pages.rs` fails when the page shows other tables than these.

use std::process::ExitCode;

const BEGIN: &str = "<!-- commands -->\n";
const END: &str = "<!-- /commands -->\n";

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: commands_page FILE");
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
    let new = format!("{before}{BEGIN}{}{END}{after}", commands::docs::command_tables());
    std::fs::write(path, new).map_err(|error| error.to_string())
}
