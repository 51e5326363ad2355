//! The command line without a server: help, configuration, refusals.
//!
//! Help is compared with `tests/help/*.txt`; `BLESS=1 cargo test -p bridle --test cli`
//! rewrites these files, to be read and committed.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

/// Exit code, standard output, standard error.
fn bridle(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_bridle"))
        .args(words)
        .env("COLUMNS", "100")
        .env_remove("BRIDLE_PASSWORD")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The error of a start that must fail.
fn refused(words: &[&str]) -> String {
    let (code, out, error) = bridle(words);
    assert_eq!((code, out.as_str()), (1, ""), "{words:?}: {error}");
    error
}

#[test]
fn help_equals_the_stored_text() {
    let pages: &[&[&str]] = &[
        &[],
        &["standalone"],
        &["node"],
        &["storage"],
        &["proxy"],
        &["meta"],
        &["admin"],
        &["admin", "status"],
        &["admin", "nodes"],
        &["admin", "forget"],
        &["admin", "release"],
        &["admin", "partitions"],
        &["admin", "transfer"],
        &["admin", "certs"],
        &["admin", "tables"],
        &["admin", "create"],
        &["admin", "drop"],
        &["admin", "env"],
        &["admin", "env", "get"],
        &["admin", "env", "set"],
        &["admin", "env", "del"],
        &["admin", "compact"],
    ];
    for page in pages {
        let words: Vec<&str> = page.iter().copied().chain(["--help"]).collect();
        let (code, help, _) = bridle(&words);
        assert_eq!(code, 0);
        let name = if page.is_empty() { "bridle".to_owned() } else { page.join("-") };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help").join(name + ".txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &help).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            help,
            written,
            "{} is not what `bridle {}` says",
            path.display(),
            words.join(" ")
        );
    }
}

#[test]
fn version_and_usage_are_printed() {
    assert_eq!(bridle(&["--version"]).1, format!("bridle {}\n", env!("CARGO_PKG_VERSION")));
    let (code, _, error) = bridle(&[]);
    assert!(code == 2 && error.contains("Usage: bridle <COMMAND>"), "{error}");
}

#[test]
fn the_configuration_is_printed_and_read_back() {
    let (code, defaults, _) = bridle(&["standalone", "--print-config"]);
    assert_eq!((code, defaults.as_str()), (0, include_str!("../bridle.toml")));

    let flags = [
        "standalone",
        "--print-config",
        "--port",
        "7777",
        "--bind",
        "::1",
        "--durability",
        "os",
        "--data",
        "/x y",
        "--set",
        "proxy.timeout=90s",
    ];
    let printed = bridle(&flags).1;
    for line in [
        "port = 7777",
        "bind = [\"::1\"]",
        "durability = \"os\"",
        "data = \"/x y\"",
        "timeout = \"90s\"",
    ] {
        assert!(printed.contains(&format!("\n{line}\n")), "{line} is missing in:\n{printed}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, &printed).unwrap();
    assert_eq!(
        bridle(&["standalone", "--print-config", "--config", file.to_str().unwrap()]).1,
        printed
    );
}

#[test]
fn flags_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[proxy]\nport = 1111\nmaxclients = 7\n").unwrap();
    let printed = bridle(&[
        "standalone",
        "--print-config",
        "--config",
        file.to_str().unwrap(),
        "--port",
        "2222",
    ])
    .1;
    assert!(
        printed.contains("\nport = 2222\n") && printed.contains("\nmaxclients = 7\n"),
        "{printed}"
    );
}

#[test]
fn a_wrong_file_is_refused_with_line_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let file = file.to_str().unwrap();
    std::fs::write(file, "[proxy]\nport = 1111\nprot = 7\n").unwrap();
    let error = refused(&["standalone", "--config", file]);
    assert!(
        error.starts_with(&format!(
            "bridle: {file}, line 3, column 1: there is no key `prot` in [proxy]"
        )),
        "{error}"
    );
    assert!(error.contains("\n    prot = 7\n    ^"), "{error}");
    std::fs::write(file, "[storage]\nblock_cache = \"lots\"\n").unwrap();
    let error = refused(&["standalone", "--config", file]);
    assert!(
        error.contains("line 2, column 15: storage.block_cache: `lots` is not a size"),
        "{error}"
    );
    assert!(
        refused(&["standalone", "--config", "/no/such/file"])
            .contains("/no/such/file: No such file")
    );
    assert!(
        refused(&["standalone", "--durability", "never"])
            .contains("`never` is none of: always, interval, os")
    );
    assert!(
        refused(&["standalone", "--set", "proxy.port=x"])
            .contains("--set proxy.port: expected a whole number")
    );
}

#[test]
fn an_open_address_without_a_password_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let error = refused(&[
        "standalone",
        "--bind",
        "0.0.0.0",
        "--port",
        "0",
        "--http-port",
        "0",
        "--data",
        data.to_str().unwrap(),
    ]);
    assert!(
        error.contains("proxy.bind = 0.0.0.0 is open to other machines, and no password is set"),
        "{error}"
    );
    assert!(!data.exists(), "nothing was created");
}

#[test]
fn a_directory_that_is_not_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "x").unwrap();
    let error = refused(&[
        "standalone",
        "--port",
        "0",
        "--http-port",
        "0",
        "--data",
        dir.path().to_str().unwrap(),
    ]);
    assert!(error.contains("not a Bridle directory"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was put there");
}

#[test]
fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let data = dir.path().to_str().unwrap();
    let error = refused(&["standalone", "--port", &port, "--http-port", "0", "--data", data]);
    assert!(
        error.contains(&format!(
            "bind 127.0.0.1 port {port} (proxy.port, --port): Address already in use"
        )),
        "{error}"
    );
    let error = refused(&["standalone", "--port", "0", "--http-port", &port, "--data", data]);
    assert!(error.contains("(http.port, --http-port): Address already in use"), "{error}");
}

#[test]
fn admin_reports_a_server_that_does_not_answer() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refused(&["admin", "--url", &format!("http://{free}"), "status"]);
    assert!(
        error.contains(&format!("no server answers at {free}"))
            && error.contains("--url sets the address"),
        "{error}"
    );
}

#[test]
fn a_cluster_that_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = |flags: &[&str]| {
        let common = ["--http-port", "0", "--data", data.to_str().unwrap()];
        refused(&[flags, &common].concat())
    };
    assert!(node(&["node"]).contains("cluster.metas (--metas) has 0 addresses"));
    assert!(node(&["node", "--metas", "a:1,b:1"]).contains("1, 3 or 5"));
    assert!(node(&["node", "--metas", "a"]).contains("--metas: `a` is not a host and port"));
    assert!(node(&["meta", "--metas", "a:1"]).contains(
        "this meta's address 127.0.0.1:7201 (cluster.advertise, or else cluster.listen) is not \
         in cluster.metas: a:1"
    ));
    assert!(node(&["storage", "--metas", "127.0.0.1:7201"]).contains("this process is not a meta"));
    let open = ["proxy", "--metas", "a:1", "--listen", "0.0.0.0:7201", "--advertise", "b:1"];
    assert!(node(&open).contains(
        "cluster.listen = 0.0.0.0:7201 is open to other machines, and the cluster has neither \
         a secret nor TLS"
    ));
    assert!(!data.exists(), "nothing was created");
}

#[test]
fn certificates_are_made_and_added_to() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let make = |hosts: &[&str]| {
        bridle(&[&["admin", "certs", "--dir", certs.to_str().unwrap()], hosts].concat())
    };
    let (code, out, error) = make(&["node1", "127.0.0.1"]);
    assert_eq!(code, 0, "{error}");
    assert!(
        out.contains("# on node1\n[cluster]\ncert_file = ") && out.contains("ca.key secret"),
        "{out}"
    );
    let read = |name: &str| std::fs::read_to_string(certs.join(name)).unwrap();
    let authority = read("ca.pem");
    assert!(
        authority.starts_with("-----BEGIN CERTIFICATE-----")
            && read("127.0.0.1.key").contains("PRIVATE KEY")
    );
    let mode = |name: &str| {
        std::os::unix::fs::MetadataExt::mode(&certs.join(name).metadata().unwrap()) & 0o777
    };
    assert_eq!((mode("ca.key"), mode("node1.key")), (0o600, 0o600));
    assert_eq!(make(&["node2"]).0, 0);
    assert_eq!(read("ca.pem"), authority, "the same authority signs those that come later");
    assert!(make(&["../x"]).2.contains("'../x' is not a host"));
    std::fs::remove_file(certs.join("ca.key")).unwrap();
    assert!(make(&["node3"]).2.contains("both are needed, or neither"));
}
