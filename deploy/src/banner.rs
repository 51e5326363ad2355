//! The banner at start: addresses, durability, and a first command to type.

use std::net::SocketAddr;
use std::path::Path;

use crate::config::{Config, Dur, Durability, SettingValue};
use crate::ports::BoundAddresses;
use crate::process_info::role_names;
use crate::server::Mode;

/// The banner's text.
pub(crate) fn banner(mode: Mode, config: &Config, data: &Path, bound: &BoundAddresses) -> String {
    let (plain, tls, http) = (&bound.plain, &bound.tls, bound.http);
    let list = |addresses: &[SocketAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let what =
        if mode.in_cluster() { role_names(mode).join(" and ") } else { "standalone".to_owned() };
    let mut lines = vec![format!("Bridle {}, {what}", env!("CARGO_PKG_VERSION"))];
    if let Some(at) = bound.cluster {
        lines.push(format!(
            "  cluster         {}, reached at {}",
            config.cluster.name,
            config.cluster.advertised(at)
        ));
        let metas = config.cluster.meta_addresses().join(", ");
        lines.push(format!("  metas           {metas}"));
        if config.cluster.secret.is_empty()
            && config.cluster.net_tls().is_none()
            && !config.cluster.protected_mode
        {
            lines.push(
                "  secret          none, and protected mode is off: everyone who can reach the \
                 cluster's port owns the data"
                    .to_owned(),
            );
        }
    }
    if !plain.is_empty() {
        lines.push(format!("  Redis clients   {}", list(plain)));
    }
    if !tls.is_empty() {
        lines.push(format!("  with TLS        {}", list(tls)));
    }
    if mode.roles().proxy && !config.proxy.unixsocket.as_os_str().is_empty() {
        lines.push(format!("  Unix socket     {}", config.proxy.unixsocket.display()));
    }
    lines.push(format!("  metrics, admin  http://{http}"));
    lines.push(format!("  data            {}", data.display()));
    lines.push(format!("  memory          {}", config.shares.memory.text()));
    // A process without replicas has the durability of the servers that store them.
    if mode.roles().storage {
        lines.push(format!(
            "  durability      {}: {}",
            config.storage.durability.name(),
            durability_text(config)
        ));
    }
    if config.proxy.requirepass.is_empty() && !config.proxy.protected_mode {
        lines.push(
            "  password        none, and protected mode is off: everyone who can reach the port \
             owns the data"
                .to_owned(),
        );
    }
    if let Some(line) = example_command(config, plain, tls) {
        lines.push(format!("Try:  {line}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn durability_text(config: &Config) -> String {
    match config.storage.durability {
        Durability::Always => "an acknowledged write survives power loss".to_owned(),
        Durability::Interval => {
            let Dur(span) = config.storage.sync_interval;
            let span = Dur(span).text();
            format!(
                "an acknowledged write survives a crash of the process; power loss may take the \
                 last {}",
                span.trim_matches('"')
            )
        }
        Durability::Os => {
            "an acknowledged write survives a crash of the process, but not power loss".to_owned()
        }
    }
}

/// A command line that works as it is printed.
fn example_command(config: &Config, plain: &[SocketAddr], tls: &[SocketAddr]) -> Option<String> {
    let at = |address: &SocketAddr| match address.ip() {
        ip if ip.is_unspecified() || ip.to_string() == "127.0.0.1" => {
            format!("redis-cli -p {}", address.port())
        }
        ip => format!("redis-cli -h {ip} -p {}", address.port()),
    };
    let mut line = match (plain.first(), tls.first()) {
        (Some(address), _) => at(address),
        (None, Some(address)) => format!("{} --tls", at(address)),
        (None, None) => return None,
    };
    if !config.proxy.requirepass.is_empty() {
        line.push_str(" --askpass");
    }
    Some(format!("{line} SET greeting hello"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn the_banner_shows_addresses_and_durability() {
        let mut config = Config::defaults();
        let plain = ["127.0.0.1:6379".parse().unwrap()];
        let http = "127.0.0.1:9121".parse().unwrap();
        let mut bound =
            BoundAddresses { plain: plain.to_vec(), tls: Vec::new(), http, cluster: None };
        let text = banner(Mode::Standalone, &config, Path::new("./data"), &bound);
        assert!(
            text.starts_with(concat!("Bridle ", env!("CARGO_PKG_VERSION"), ", standalone\n")),
            "{text}"
        );
        assert!(
            text.contains("Redis clients   127.0.0.1:6379\n")
                && text.contains("http://127.0.0.1:9121\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "memory          256MiB, a quarter of 1GiB, as the system does not report its \
                 memory\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("durability      always: an acknowledged write survives power loss\n"),
            "{text}"
        );
        assert!(text.ends_with("Try:  redis-cli -p 6379 SET greeting hello\n"), "{text}");

        config.storage.durability = Durability::Interval;
        config.proxy.requirepass = Secret::new("open sesame");
        (bound.plain, bound.tls) = (Vec::new(), vec!["10.0.0.1:6380".parse().unwrap()]);
        let text = banner(Mode::Standalone, &config, Path::new("./data"), &bound);
        assert!(text.contains("power loss may take the last 100ms\n"), "{text}");
        assert!(
            text.ends_with(
                "Try:  redis-cli -h 10.0.0.1 -p 6380 --tls --askpass SET greeting hello\n"
            ),
            "{text}"
        );
        assert!(!text.contains("sesame"));

        bound.cluster = Some("127.0.0.1:7201".parse().unwrap());
        let mode =
            Mode::Member(cluster::meta_protocol::Roles { meta: false, storage: true, proxy: true });
        let text = banner(mode, &config, Path::new("./data"), &bound);
        assert!(
            text.contains(
                ", storage and proxy\n  cluster         bridle, reached at 127.0.0.1:7201\n"
            ),
            "{text}"
        );
    }
}
