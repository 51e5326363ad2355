//! Other people's programs, run to their end; and throw-away certificates for them and
//! for the server.
#![allow(dead_code, unreachable_pub, reason = "every test file uses some of it")]

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct ProgramOutput {
    /// Whether it ended well.
    pub fine: bool,
    /// Standard output and standard error, one after the other.
    pub said: String,
}

/// Runs a program with `input` on its standard input; it is ended after two minutes.
pub fn run(program: impl AsRef<Path>, words: &[&str], input: &str) -> ProgramOutput {
    run_in(Path::new("."), program, words, &[], input)
}

/// [`run`] in a directory, with additions to the environment.
pub fn run_in(
    dir: &Path,
    program: impl AsRef<Path>,
    words: &[&str],
    env: &[(&str, String)],
    input: &str,
) -> ProgramOutput {
    let program = program.as_ref();
    let mut command = Command::new("timeout");
    command
        .arg("120")
        .arg(program)
        .args(words)
        .current_dir(dir)
        .envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("timeout is part of every system");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // A program may end without reading all of it.
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("our own child");
    let _ = feeding.join().expect("writing does not panic");
    let said = [output.stdout, output.stderr].concat();
    ProgramOutput {
        fine: output.status.success(),
        said: String::from_utf8_lossy(&said).into_owned(),
    }
}

/// What a program said; it must have ended well.
pub fn said(program: impl AsRef<Path>, words: &[&str], input: &str) -> String {
    let program = program.as_ref();
    let ended = run(program, words, input);
    assert!(ended.fine, "{} {words:?} failed:\n{}", program.display(), ended.said);
    ended.said
}

/// Where tests keep what they have fetched.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Where the programs for a kind of client are.
pub fn programs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// A Python with redis-py, fetched when it is not there.
pub fn redis_py() -> PathBuf {
    let venv = kept("redis-py");
    let python = venv.join("bin/python");
    if !run(&python, &["-c", "import redis"], "").fine {
        said("python3", &["-m", "venv", "--clear", &venv.display().to_string()], "");
        said(&python, &["-m", "pip", "install", "--quiet", "redis>=6"], "");
    }
    python
}

/// A directory with these programs in which Node finds ioredis and node-redis, fetched
/// when they are not there.
pub fn node(files: &[&str]) -> PathBuf {
    let (sources, home) = (programs("node"), kept("node"));
    std::fs::create_dir_all(&home).expect("a directory");
    for file in files.iter().chain(&["package.json"]) {
        std::fs::copy(sources.join(file), home.join(file)).expect("the programs are in the tree");
    }
    if !run_in(&home, Path::new("node"), &["-e", "require('ioredis'); require('redis')"], &[], "")
        .fine
    {
        let ended = run_in(
            &home,
            Path::new("npm"),
            &["install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"],
            &[],
            "",
        );
        assert!(ended.fine, "npm install: {}", ended.said);
    }
    home
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A directory of certificates: an authority's, the server's (`localhost`, `127.0.0.1`)
/// and a client's.
#[derive(Debug)]
pub struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    /// Makes them.
    pub fn new() -> Certificates {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Certificates { dir };
        let mut params = CertificateParams::new(Vec::new()).expect("no names are fine names");
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("a certificate");
        made.write("ca.pem", &authority.pem());
        for (name, names) in
            [("server", ["localhost", "127.0.0.1"]), ("client", ["client", "client.test"])]
        {
            let key = KeyPair::generate().expect("a key");
            let mut params =
                CertificateParams::new(names.map(str::to_owned).to_vec()).expect("fine names");
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority).expect("a certificate");
            made.write(&format!("{name}.pem"), &certificate.pem());
            made.write(&format!("{name}.key"), &key.serialize_pem());
        }
        made
    }

    /// The same files elsewhere.
    pub fn copy_of(other: &Certificates) -> Certificates {
        let dir = tempfile::tempdir().expect("a directory");
        for file in std::fs::read_dir(other.dir.path()).expect("it is there") {
            let file = file.expect("it is there");
            std::fs::copy(file.path(), dir.path().join(file.file_name())).expect("room");
        }
        Certificates { dir }
    }

    /// Where a file lies: `ca.pem`, `server.pem`, `server.key`, `client.pem`,
    /// `client.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// [`Certificates::path`] as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The `[tls]` section of a server that uses them.
    pub fn section(&self, port: u16) -> String {
        format!(
            "[tls]\nport = {port}\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
            self.text("server.pem"),
            self.text("server.key")
        )
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).expect("write a certificate");
    }
}
