//! Types of settings: parsing from TOML and printing as TOML.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

/// The type of a setting.
pub(crate) trait SettingValue: Sized {
    /// Parses a TOML value; the error names what is expected.
    fn parse(value: &DeValue<'_>) -> Result<Self, String>;
    /// The value as TOML, with passwords hidden.
    fn text(&self) -> String;
    /// The value as TOML, complete.
    fn file_text(&self) -> String {
        self.text()
    }
}

/// Refuses a value outside of its bounds, both included.
pub(super) fn check_range<T: SettingValue + PartialOrd>(
    value: &T,
    least: T,
    most: T,
) -> Result<(), String> {
    if *value < least || *value > most {
        return Err(format!("must be from {} to {}", least.text(), most.text()));
    }
    Ok(())
}

fn wrong<T>(wanted: &str, value: &DeValue<'_>) -> Result<T, String> {
    Err(format!("expected {wanted}, found {}", value.type_str()))
}

fn whole<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
        _ => None,
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl SettingValue for bool {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().map_or_else(|| wrong("true or false", value), Ok)
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl SettingValue for $type {
            fn parse(value: &DeValue<'_>) -> Result<Self, String> {
                match whole(value) {
                    Some(digits) => digits
                        .parse()
                        .map_err(|_| format!("must be from 0 to {}", <$type>::MAX)),
                    None => wrong("a whole number", value),
                }
            }
            fn text(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
integers!(u16, u32);

impl SettingValue for String {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_str().map_or_else(|| wrong("text", value), |text| Ok(text.to_owned()))
    }
    fn text(&self) -> String {
        quoted(self)
    }
}

impl SettingValue for PathBuf {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_str().map_or_else(|| wrong("a path", value), |text| Ok(PathBuf::from(text)))
    }
    fn text(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

/// Permissions of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileMode(pub(crate) Option<u32>);

impl FileMode {
    /// The mode in octal digits; empty: none is set.
    pub(crate) fn digits(self) -> String {
        self.0.map(|mode| format!("{mode:o}")).unwrap_or_default()
    }
}

impl SettingValue for FileMode {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        // Redis's file has digits without quotes; they are octal, too.
        let text = match value {
            DeValue::Integer(digits) if digits.radix() == 10 => digits.as_str(),
            other => other.as_str().ok_or("expected permissions in octal digits, like \"700\"")?,
        };
        if text.is_empty() {
            return Ok(FileMode(None));
        }
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(|mode| FileMode(Some(mode)))
            .ok_or_else(|| format!("`{text}` is not permissions in octal digits, like \"700\""))
    }
    fn text(&self) -> String {
        quoted(&self.digits())
    }
}

impl SettingValue for IpAddr {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some(text) => text.parse().map_err(|_| {
                format!("`{text}` is not an IP address like \"127.0.0.1\" or \"::1\"")
            }),
            None => wrong("an IP address like \"127.0.0.1\"", value),
        }
    }
    fn text(&self) -> String {
        quoted(&self.to_string())
    }
}

impl SettingValue for Vec<IpAddr> {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value {
            DeValue::Array(items) if items.is_empty() => {
                Err("must name at least one address".into())
            }
            DeValue::Array(items) => {
                items.iter().map(|item| IpAddr::parse(item.get_ref())).collect()
            }
            DeValue::String(_) => Ok(vec![IpAddr::parse(value)?]),
            _ => wrong("a list of IP addresses", value),
        }
    }
    fn text(&self) -> String {
        format!("[{}]", self.iter().map(SettingValue::text).collect::<Vec<_>>().join(", "))
    }
}

impl SettingValue for Vec<String> {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value {
            DeValue::Array(items) => {
                items.iter().map(|item| String::parse(item.get_ref())).collect()
            }
            DeValue::String(_) => Ok(vec![String::parse(value)?]),
            _ => wrong("a list of names", value),
        }
    }
    fn text(&self) -> String {
        format!("[{}]", self.iter().map(SettingValue::text).collect::<Vec<_>>().join(", "))
    }
}

impl SettingValue for SocketAddr {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some(text) => text.parse().map_err(|_| {
                format!(
                    "`{text}` is not an IP address and port like \"127.0.0.1:7201\" or \
                     \"[::1]:7201\""
                )
            }),
            None => wrong("an IP address and port like \"127.0.0.1:7201\"", value),
        }
    }
    fn text(&self) -> String {
        quoted(&self.to_string())
    }
}

/// The address of a process: host:port, the host by name or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) String);

impl Address {
    /// From `name:port`, `1.2.3.4:port` or `[::1]:port`.
    pub(crate) fn new(text: &str) -> Result<Address, String> {
        let refused = || {
            format!(
                "`{text}` is not a host and port like \"meta1:7201\", \"10.0.0.1:7201\" or \
                 \"[::1]:7201\""
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bare {
            Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
            }
        };
        let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
        match is_host && is_port && text.len() <= cluster::meta_protocol::ADDRESS_BYTES_MAX {
            true => Ok(Address(text.to_owned())),
            false => Err(refused()),
        }
    }

    /// The host, without brackets.
    pub(crate) fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or(self.0.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl SettingValue for Address {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        value
            .as_str()
            .map_or_else(|| wrong("a host and port like \"meta1:7201\"", value), Address::new)
    }
    fn text(&self) -> String {
        quoted(&self.0)
    }
}

impl SettingValue for Option<Address> {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some("") => Ok(None),
            _ => Address::parse(value).map(Some),
        }
    }
    fn text(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), SettingValue::text)
    }
}

impl SettingValue for Vec<Address> {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value {
            DeValue::Array(items) => {
                items.iter().map(|item| Address::parse(item.get_ref())).collect()
            }
            // From a flag: a list separated by commas.
            DeValue::String(text) => text
                .split(',')
                .map(str::trim)
                .filter(|one| !one.is_empty())
                .map(Address::new)
                .collect(),
            _ => wrong("a list of hosts and ports", value),
        }
    }
    fn text(&self) -> String {
        format!("[{}]", self.iter().map(SettingValue::text).collect::<Vec<_>>().join(", "))
    }
}

/// Splits "16MiB" into 16 and "MiB"; `None` when there are no digits or too many.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    const UNITS: [(&'static str, u64); 7] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1000),
    ];

    /// This many KiB.
    pub(crate) const fn kib(count: u64) -> Size {
        Size(count << 10)
    }

    /// This many MiB.
    pub(crate) const fn mib(count: u64) -> Size {
        Size(count << 20)
    }

    /// The size for people, without quotes.
    pub(crate) fn human(self) -> String {
        self.text().trim_matches('"').to_owned()
    }
}

impl SettingValue for Size {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        const WANTED: &str = "a size like \"16MiB\", or bytes";
        if let Some(digits) = whole(value) {
            return digits.parse().map(Size).map_err(|_| format!("expected {WANTED}"));
        }
        let Some(text) = value.as_str() else { return wrong(WANTED, value) };
        let bytes = number_and_unit(text).and_then(|(count, unit)| {
            let (_, factor) = [("", 1), ("B", 1)]
                .into_iter()
                .chain(Self::UNITS)
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
            count.checked_mul(factor)
        });
        bytes.map(Size).ok_or_else(|| format!("`{text}` is not {WANTED}"))
    }

    fn text(&self) -> String {
        match Self::UNITS[..4]
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
        {
            Some((unit, factor)) => quoted(&format!("{}{unit}", self.0 / factor)),
            None => self.0.to_string(),
        }
    }
}

/// A size in bytes, or a share of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AutoSize {
    /// A share of `node.memory`.
    Auto,
    /// This many.
    Bytes(Size),
}

impl AutoSize {
    /// This many MiB.
    pub(crate) const fn mib(count: u64) -> AutoSize {
        AutoSize::Bytes(Size::mib(count))
    }
}

impl PartialOrd for AutoSize {
    /// Bounds apply to explicit sizes only: `auto` is neither above nor below them.
    fn partial_cmp(&self, other: &AutoSize) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (AutoSize::Bytes(a), AutoSize::Bytes(b)) => a.partial_cmp(b),
            (AutoSize::Auto, AutoSize::Auto) => Some(std::cmp::Ordering::Equal),
            _ => None,
        }
    }
}

impl SettingValue for AutoSize {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some("auto") => Ok(AutoSize::Auto),
            _ => Size::parse(value)
                .map(AutoSize::Bytes)
                .map_err(|error| format!("{error}, or \"auto\"")),
        }
    }
    fn text(&self) -> String {
        match self {
            AutoSize::Auto => quoted("auto"),
            AutoSize::Bytes(size) => size.text(),
        }
    }
}

/// A time span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) struct Dur(pub(crate) Duration);

impl Dur {
    /// Units and their length in microseconds, longest first.
    const UNITS: [(&'static str, u64); 6] = [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1000),
        ("us", 1),
    ];

    /// This many ms.
    pub(crate) const fn ms(count: u64) -> Dur {
        Dur(Duration::from_millis(count))
    }
}

impl SettingValue for Dur {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        const WANTED: &str = "a duration like \"100ms\", \"5s\" or \"2m\"";
        let Some(text) = value.as_str() else { return wrong(WANTED, value) };
        let micros = number_and_unit(text).and_then(|(count, unit)| match (count, unit) {
            (0, "") => Some(0),
            _ => count.checked_mul(Self::UNITS.iter().find(|(name, _)| *name == unit)?.1),
        });
        micros
            .map(|micros| Dur(Duration::from_micros(micros)))
            .ok_or_else(|| format!("`{text}` is not {WANTED}"))
    }

    fn text(&self) -> String {
        let micros = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        match Self::UNITS[2..]
            .iter()
            .find(|(_, factor)| micros >= *factor && micros.is_multiple_of(*factor))
        {
            Some((unit, factor)) => quoted(&format!("{}{unit}", micros / factor)),
            None => quoted("0s"),
        }
    }
}

/// A duration above which an event is recorded, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Threshold(pub(crate) Option<Duration>);

impl SettingValue for Threshold {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some("never") => Ok(Threshold(None)),
            _ => Dur::parse(value)
                .map(|span| Threshold(Some(span.0)))
                .map_err(|error| format!("{error}, or \"never\"")),
        }
    }
    fn text(&self) -> String {
        self.0.map_or_else(|| quoted("never"), |span| Dur(span).text())
    }
}

/// The limit on the memory of all clients: `proxy.maxmemory_clients`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientsShare {
    /// An eighth of `memory`.
    Auto,
    /// Percentage of `memory`, 1 to 100.
    Percent(u8),
    /// A size; 0: no limit.
    Bytes(Size),
}

impl SettingValue for ClientsShare {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        let text = value.as_str();
        if text == Some("auto") {
            return Ok(ClientsShare::Auto);
        }
        if let Some(number) = text.and_then(|text| text.strip_suffix('%')) {
            let percent = number.parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent
                .map(ClientsShare::Percent)
                .ok_or_else(|| "a percentage is from 1% to 100%".to_owned());
        }
        Size::parse(value)
            .map(ClientsShare::Bytes)
            .map_err(|error| format!("{error}, \"5%\", or \"auto\""))
    }
    fn text(&self) -> String {
        match self {
            ClientsShare::Auto => quoted("auto"),
            ClientsShare::Percent(percent) => quoted(&format!("{percent}%")),
            ClientsShare::Bytes(size) => size.text(),
        }
    }
}

/// A password or secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Printed in place of a password.
    pub(crate) const HIDDEN: &'static str = "********";

    /// No password is set.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The password itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// A secret with this text.
    pub(crate) fn new(password: &str) -> Secret {
        Secret(password.to_owned())
    }

    /// The first line of a file.
    pub(crate) fn from_file(path: &Path) -> Result<Secret, String> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!("read the password or secret from {}: {error}", path.display())
        })?;
        match text.lines().next().map(str::trim_end) {
            Some(line) if !line.is_empty() => Ok(Secret(line.to_owned())),
            _ => Err(format!(
                "the first line of {} is empty: it must be a password or secret",
                path.display()
            )),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { Self::HIDDEN })
    }
}

impl SettingValue for Secret {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some(Self::HIDDEN) => {
                Err("this is the placeholder of a hidden password, not a password".into())
            }
            Some(text) => Ok(Secret(text.to_owned())),
            None => wrong("a password in quotes", value),
        }
    }
    fn text(&self) -> String {
        quoted(if self.is_empty() { "" } else { Self::HIDDEN })
    }
    fn file_text(&self) -> String {
        quoted(&self.0)
    }
}

/// Types whose values are a few names.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident {
        $($(#[$value_doc:meta])* $variant:ident = $name_text:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$value_doc])* $variant,)* }

        impl $name {
            const NAMES: &'static [&'static str] = &[$($name_text),*];

            /// Its name in the configuration.
            pub(crate) fn name(self) -> &'static str {
                match self { $($name::$variant => $name_text,)* }
            }
        }

        impl SettingValue for $name {
            fn parse(value: &DeValue<'_>) -> Result<Self, String> {
                match value.as_str() {
                    $(Some($name_text) => Ok($name::$variant),)*
                    Some(other) => Err(format!("`{other}` is none of: {}", Self::NAMES.join(", "))),
                    None => wrong(&format!("one of: {}", Self::NAMES.join(", ")), value),
                }
            }
            fn text(&self) -> String {
                quoted(self.name())
            }
        }
    )*};
}

names! {
    /// Durability of an acknowledged write.
    Durability {
        /// Fsynced before the reply.
        Always = "always",
        /// Fsynced every `sync_interval`.
        Interval = "interval",
        /// Written to disk when the operating system decides.
        Os = "os",
    }
    /// Compression of the lowest level of files.
    Compression {
        /// Fast.
        Lz4 = "lz4",
        /// Small.
        Zstd = "zstd",
    }
    /// Format of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }
}

impl Durability {
    /// The durability as reported to the cluster.
    pub(crate) fn to_cluster(self) -> cluster::meta_protocol::Durability {
        match self {
            Durability::Always => cluster::meta_protocol::Durability::Always,
            Durability::Interval => cluster::meta_protocol::Durability::Interval,
            Durability::Os => cluster::meta_protocol::Durability::Os,
        }
    }
}

/// The log's filter, in `tracing`'s syntax; checked when it is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogLevel(pub(crate) String);

impl SettingValue for LogLevel {
    fn parse(value: &DeValue<'_>) -> Result<Self, String> {
        const WANTED: &str = "a level (error, warn, info, debug, trace) or \"info,crate=debug\"";
        let Some(text) = value.as_str() else { return wrong(WANTED, value) };
        let levels = text.split(',').map(|part| part.rsplit('=').next().unwrap_or(part));
        let known =
            |level: &str| matches!(level, "error" | "warn" | "info" | "debug" | "trace" | "off");
        if !levels.into_iter().all(known) || tracing_subscriber::EnvFilter::try_new(text).is_err() {
            return Err(format!("`{text}` is not {WANTED}"));
        }
        Ok(LogLevel(text.to_owned()))
    }
    fn text(&self) -> String {
        quoted(&self.0)
    }
}
