//! The operator's tools: `bridle admin`, the HTTP pages, and measurements of files and
//! memory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::{Server, binary};

/// Output and success of a run of `bridle`.
#[derive(Debug)]
pub struct CommandOutput {
    /// The exit code was 0.
    pub success: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub error: String,
}

/// Runs the binary to its end, without a password in its environment.
///
/// # Panics
/// When it can't be started.
pub fn bridle(words: &[&str]) -> CommandOutput {
    bridle_with(None, words)
}

/// Runs the binary to its end, with this password in its environment.
///
/// # Panics
/// When it can't be started.
pub fn bridle_with(password: Option<&str>, words: &[&str]) -> CommandOutput {
    let mut command = Command::new(binary());
    command
        .args(words)
        .env_remove("BRIDLE_PASSWORD")
        .envs(password.map(|password| ("BRIDLE_PASSWORD", password)));
    let output = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    CommandOutput {
        success: output.status.success(),
        out: text(output.stdout),
        error: text(output.stderr),
    }
}

/// The output of `bridle admin --json` at a URL.
///
/// # Panics
/// When it fails, or does not print JSON.
pub fn admin_json(url: &str, password: Option<&str>, words: &[&str]) -> Json {
    let output = bridle_with(password, &[&["admin", "--json", "--url", url], words].concat());
    assert!(output.success, "{words:?}: {}", output.error);
    serde_json::from_str(&output.out)
        .unwrap_or_else(|error| panic!("{words:?}: {error}: {}", output.out))
}

impl Server {
    /// Runs `bridle admin` against this server.
    pub fn admin(&self, words: &[&str]) -> CommandOutput {
        bridle(&[&["admin", "--url", &self.url()], words].concat())
    }

    /// The output of `bridle admin --json` for this server.
    ///
    /// # Panics
    /// When it fails, or does not print JSON.
    pub fn admin_json(&self, words: &[&str]) -> Json {
        admin_json(&self.url(), None, words)
    }

    /// URL of the HTTP port, for `bridle admin --url`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// Status and body of a page of the HTTP port.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn page(&self, path: &str) -> (u16, String) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response =
            agent.get(format!("{}{path}", self.url())).call().expect("the HTTP port answers");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a page of text"))
    }

    /// Resident memory of the process, bytes.
    ///
    /// # Panics
    /// When it does not run.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("a running process has a status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("Linux says how much memory is resident");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("kB");
        kib << 10
    }

    /// Bytes that the data directory takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        files(self.dir()).iter().map(|file| blocks(file)).sum()
    }

    /// Bytes that the Raft log takes on disk.
    pub fn log_bytes(&self) -> u64 {
        files(&self.dir().join("log")).iter().map(|file| blocks(file)).sum()
    }
}

/// All files below a directory, sorted. Files that disappear meanwhile are left out.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

fn blocks(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map_or(0, |meta| meta.blocks() * 512)
}

/// Waits until a condition holds; returns the time that it took.
///
/// # Panics
/// When it does not hold after `seconds`.
pub fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}
