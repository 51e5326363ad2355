//! Tests of parsing, refusing and printing configuration files.

use super::file::{ConfigError, DEFAULTS};
use std::path::Path;

use super::*;

fn read(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::defaults();
    config.read("test.toml", text)?;
    Ok(config)
}

/// Resolves on an unknown machine.
fn settle_config(config: &mut Config) -> Result<(), String> {
    config.resolve(Machine::detect(Path::new("/nowhere"))).map(|_| ())
}

fn resolve(text: &str) -> Result<(), String> {
    settle_config(&mut read(text).map_err(|refused| refused.to_string())?)
}

/// Line, column and reason of the error.
fn refusal(text: &str) -> (usize, usize, String) {
    let refused = read(text).expect_err("should be refused");
    let (line, column, _) = refused.at.clone().unwrap_or_else(|| panic!("no place in: {refused}"));
    (line, column, refused.reason)
}

#[test]
fn defaults_are_complete() {
    let table = file::parse_defaults();
    let mut documented: Vec<(String, String)> = Vec::new();
    for (section, keys) in &table {
        let keys = keys.get_ref().as_table().expect("sections only");
        documented.extend(
            keys.keys().map(|key| (section.get_ref().to_string(), key.get_ref().to_string())),
        );
    }
    let mut known: Vec<(String, String)> =
        KEYS.iter().map(|(section, key)| (section.to_string(), key.to_string())).collect();
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
    resolve(DEFAULTS).expect("the defaults are within their own bounds, and safe");
}

#[test]
fn a_database_has_one_partition_wherever_it_is() {
    assert_eq!(
        Config::defaults().tables.partitions,
        1,
        "else MULTI over any two keys is CROSSSLOT"
    );
}

#[test]
fn every_key_has_a_comment() {
    let mut commented = false;
    for line in DEFAULTS.lines() {
        if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            assert!(commented, "{key} stands without a comment");
        }
        commented = line.starts_with('#');
    }
}

#[test]
fn printed_config_round_trips() {
    let config = read(
        "[proxy]\nport = 7777\nbind = [\"::1\", \"127.0.0.1\"]\ntimeout = \"90s\"\n[node]\ndata = \
         'a \"b\" \\c'\n[storage]\ndurability = \"interval\"\nmax_write_size = \
         70000\nsync_interval = \"20ms\"\n[log]\nlevel = \"warn,storage=debug\"\nformat = \
         \"json\"\n",
    )
    .unwrap();
    let printed = render(&config);
    assert!(printed.contains("\nport = 7777\n"), "{printed}");
    assert_eq!(read(&printed).unwrap(), config);
    assert_eq!(render(&Config::defaults()), DEFAULTS);
}

#[test]
fn passwords_are_not_shown() {
    let config = read("[proxy]\nrequirepass = \"open sesame\"\n").unwrap();
    assert!(!render(&config).contains("sesame"));
    assert!(!format!("{config:?}").contains("sesame"));
    assert!(refusal(&render(&config)).2.contains("not a password"));
    let shown = read("[proxy]\nrequirepass = [\"open sesame\"]\n").unwrap_err().to_string();
    assert!(!shown.contains("sesame"), "{shown}");
    let shown = read("[cluster]\nsecret = [\"open sesame\"]\n").unwrap_err().to_string();
    assert!(!shown.contains("sesame"), "{shown}");
}

#[test]
fn unknown_keys_are_refused_where_they_stand() {
    let (line, column, reason) = refusal("# mine\n[proxy]\nport = 1\n  prot = 7777\n");
    assert_eq!((line, column), (4, 3));
    assert!(
        reason.contains("no key `prot` in [proxy]")
            && reason.contains("unixsocketperm, protected_mode"),
        "{reason}"
    );

    let (line, column, reason) = refusal("[prox]\nport = 1\n");
    assert_eq!((line, column), (1, 2));
    assert!(
        reason.contains("no section or key `prox`") && reason.contains("node, cluster, proxy, tls"),
        "{reason}"
    );

    let (line, _, reason) = refusal("\nport = 6379\n");
    assert_eq!(line, 2);
    assert!(reason.contains("`port`"), "{reason}");
    assert!(refusal("proxy = 3\n").2.contains("write [proxy]"));
}

#[test]
fn bad_values_are_refused_with_place_and_reason() {
    let cases = [
        ("[proxy]\nport = 65536\n", 2, 8, "proxy.port: must be from 0 to 65535"),
        ("[proxy]\nport = -1\n", 2, 8, "proxy.port: must be from 0 to 65535"),
        ("[proxy]\nport = \"x\"\n", 2, 8, "proxy.port: expected a whole number, found string"),
        (
            "[proxy]\nbind = [\"localhost\"]\n",
            2,
            8,
            "proxy.bind: `localhost` is not an IP address like \"127.0.0.1\" or \"::1\"",
        ),
        ("[proxy]\nbind = []\n", 2, 8, "proxy.bind: must name at least one address"),
        (
            "[proxy]\ntimeout = 5\n",
            2,
            11,
            "proxy.timeout: expected a duration like \"100ms\", \"5s\" or \"2m\", found integer",
        ),
        (
            "[proxy]\ntimeout = \"5 weeks\"\n",
            2,
            11,
            "proxy.timeout: `5 weeks` is not a duration like \"100ms\", \"5s\" or \"2m\"",
        ),
        ("[proxy]\nmaxclients = 0\n", 2, 14, "proxy.maxclients: must be from 1 to 4294967295"),
        (
            "[storage]\nmax_write_size = \"1PiB\"\n",
            2,
            18,
            "storage.max_write_size: `1PiB` is not a size like \"16MiB\", or bytes",
        ),
        (
            "[storage]\nmax_write_size = \"1GiB\"\n",
            2,
            18,
            "storage.max_write_size: must be from \"1KiB\" to \"512MiB\"",
        ),
        (
            "[storage]\nmax_write_size = \"99999999999999999999\"\n",
            2,
            18,
            "storage.max_write_size: `99999999999999999999` is not a size like \"16MiB\", or bytes",
        ),
        (
            "[storage]\ndurability = \"never\"\n",
            2,
            14,
            "storage.durability: `never` is none of: always, interval, os",
        ),
        (
            "[log]\nlevel = \"loud\"\n",
            2,
            9,
            "log.level: `loud` is not a level (error, warn, info, debug, trace) or \
             \"info,crate=debug\"",
        ),
        ("[log]\nformat = true\n", 2, 10, "log.format: expected one of: text, json, found boolean"),
    ];
    for (text, line, column, reason) in cases {
        assert_eq!(refusal(text), (line, column, reason.to_owned()), "{text}");
    }
}

#[test]
fn broken_toml_is_refused_where_it_breaks() {
    let (line, ..) = refusal("[proxy]\nport = 1\nport = 2\n");
    assert_eq!(line, 3);
    let (line, ..) = refusal("[proxy]\nport 1\n");
    assert_eq!(line, 2);
}

#[test]
fn the_first_fault_from_the_top_is_shown() {
    let (line, ..) = refusal("[storage]\nzzz = 1\n[http]\naaa = 1\n");
    assert_eq!(line, 2);
}

#[test]
fn units_are_understood() {
    let size = |text: &str| {
        read(&format!("[storage]\nmax_answer_size = {text}\n"))
            .map(|config| config.storage.max_answer_size.0)
    };
    assert_eq!(size("\"16MiB\""), Ok(16 << 20));
    assert_eq!(size("\"16 mib\""), Ok(16 << 20));
    assert_eq!(size("\"3GB\""), Ok(3_000_000_000));
    assert_eq!(size("\"2097152\""), Ok(2 << 20));
    assert_eq!(size("2_097_152"), Ok(2 << 20));
    let time = |text: &str| {
        read(&format!("[proxy]\ntimeout = \"{text}\"\n"))
            .map(|config| config.proxy.timeout.0.as_micros())
    };
    assert_eq!((time("250us"), time("2m"), time("0")), (Ok(250), Ok(120_000_000), Ok(0)));
    assert!(time("1.5s").is_err() && time("s").is_err() && time("5").is_err());
}

#[test]
fn flags_override() {
    let mut config = Config::defaults();
    config.read_flag("proxy.port=7777").unwrap();
    config.read_flag("storage.durability=os").unwrap();
    config.read_flag("proxy.timeout = 5s").unwrap();
    config.read_flag("proxy.bind=[\"::1\"]").unwrap();
    assert_eq!(
        (config.proxy.port, config.storage.durability, config.proxy.timeout),
        (7777, Durability::Os, Dur::ms(5000))
    );
    assert_eq!(
        config.read_flag("proxy.prot=1").unwrap_err().to_string(),
        format!(
            "--set proxy.prot: there is no key `prot` in [proxy]; its keys are: {}",
            KEYS.iter()
                .filter(|(s, _)| *s == "proxy")
                .map(|(_, k)| *k)
                .collect::<Vec<_>>()
                .join(", ")
        )
    );
    assert!(config.read_flag("proxy.port").is_err() && config.read_flag("port=1").is_err());
}

#[test]
fn an_open_address_needs_a_password() {
    assert!(resolve("[proxy]\nbind = \"0.0.0.0\"\n").unwrap_err().contains("proxy.bind = 0.0.0.0"));
    assert!(resolve("[http]\nbind = \"::\"\n").unwrap_err().contains("http.bind = ::"));
    resolve("[proxy]\nbind = \"0.0.0.0\"\nrequirepass = \"x\"\n").unwrap();
    resolve("[proxy]\nbind = \"0.0.0.0\"\nprotected_mode = false\n").unwrap();
    resolve("[proxy]\nbind = \"127.0.0.9\"\n").unwrap();
}

#[test]
fn write_limits_must_fit_the_query_buffer() {
    let never = "a command of that size could never be executed";
    assert_eq!(
        resolve("[proxy]\nproto_max_bulk_len = \"65MiB\"\n"),
        Err(format!(
            "proxy.proto_max_bulk_len = \"65MiB\" is above proxy.client_query_buffer_limit = \
             \"64MiB\": {never}"
        ))
    );
    assert_eq!(
        resolve("[proxy]\nproto_max_bulk_len = \"1MiB\"\nclient_query_buffer_limit = \"15MiB\"\n"),
        Err(format!(
            "storage.max_write_size = \"16MiB\" is above proxy.client_query_buffer_limit = \
             \"15MiB\": {never}"
        ))
    );
    resolve("[proxy]\nproto_max_bulk_len = \"128MiB\"\nclient_query_buffer_limit = \"128MiB\"\n")
        .unwrap();
}

#[test]
fn requirepass_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, "open sesame\nnot this\n").unwrap();
    let mut config = Config::defaults();
    config.proxy.requirepass_file = path.clone();
    settle_config(&mut config).unwrap();
    assert_eq!(config.proxy.requirepass.reveal(), "open sesame");
    std::fs::write(&path, "\n").unwrap();
    config.proxy.requirepass = Secret::parse(&DeValue::String("".into())).unwrap();
    assert!(settle_config(&mut config).unwrap_err().contains("is empty"));
}

#[test]
fn tls_needs_its_files() {
    assert!(resolve("[tls]\nport = 6380\n").unwrap_err().contains("cert_file and tls.key_file"));
    assert!(
        resolve("[tls]\nonly = true\ncert_file = 'a'\nkey_file = 'b'\n")
            .unwrap_err()
            .contains("tls.port")
    );
}

#[test]
fn rewriting_keeps_comments_and_adds_what_is_missing() {
    let before = "# mine\n[proxy]\nport = 7_777 # why not\nrequirepass = \"x\"\n\n[tls] # \
                  none\n\n[log]\nlevel = \"info\"";
    let mut config = read(before).unwrap();
    assert_eq!(rewrite(before, &config).unwrap(), before);
    config.log.level = LogLevel("debug".into());
    config.proxy.maxclients = 5;
    config.proxy.requirepass = Secret::new("open sesame");
    config.tls.port = 6380;
    config.storage.durability = Durability::Os;
    let after = rewrite(before, &config).unwrap();
    assert_eq!(
        after,
        "# mine\n[proxy]\nport = 7_777 # why not\nrequirepass = \"open sesame\"\nmaxclients = \
         5\n\n[tls] # none\nport = 6380\n\n[log]\nlevel = \"debug\"\n\n[storage]\ndurability = \
         \"os\"\n"
    );
    assert_eq!(read(&after).unwrap(), config);
}

#[test]
fn files_in_another_style_are_not_rewritten() {
    let before = "proxy = { port = 1 }\n";
    let mut config = read(before).unwrap();
    config.proxy.maxclients = 5;
    assert!(rewrite(before, &config).is_err());
}
