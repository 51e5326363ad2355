//! The configuration as text: parsing with line, column and reason of the first error,
//! and printing with comments.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::renamed::renamed;
use super::{Config, KEYS};

/// The text of `deploy/bridle.toml`.
pub(crate) const DEFAULTS: &str = include_str!("../../bridle.toml");

/// An error in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    /// The file or flag that the text came from.
    pub(crate) source: String,
    /// 1-based line and column (in characters), and the line itself.
    pub(crate) at: Option<(usize, usize, String)>,
    /// The reason.
    pub(crate) reason: String,
}

impl ConfigError {
    fn new(source: &str, text: &str, span: Option<Range<usize>>, reason: String) -> ConfigError {
        let at = span.map(|span| {
            let before = &text[..span.start.min(text.len())];
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let line = text[line_start..].lines().next().unwrap_or_default();
            (
                before.matches('\n').count() + 1,
                before[line_start..].chars().count() + 1,
                line.to_owned(),
            )
        });
        ConfigError { source: source.to_owned(), at, reason }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some((line, column, text)) => {
                writeln!(f, "{}, line {line}, column {column}: {}", self.source, self.reason)?;
                // A line with a password or a secret is not shown.
                match text.contains("pass") || text.contains("secret") {
                    true => Ok(()),
                    false => write!(f, "    {text}\n    {:>column$}", "^"),
                }
            }
            None => write!(f, "{}: {}", self.source, self.reason),
        }
    }
}

impl std::error::Error for ConfigError {}

pub(super) fn parse_defaults() -> DeTable<'static> {
    DeTable::parse(DEFAULTS).expect("deploy/bridle.toml is TOML (a test holds it)").into_inner()
}

pub(super) fn lookup<'a, 'i>(
    table: &'a DeTable<'i>,
    section: &str,
    key: &str,
) -> Option<&'a DeValue<'i>> {
    Some(table.get(section)?.get_ref().get(key)?.get_ref())
}

fn known_keys(section: &str) -> String {
    KEYS.iter().filter(|(of, _)| *of == section).map(|(_, key)| *key).collect::<Vec<_>>().join(", ")
}

fn no_such_key(section: &str, key: &str) -> String {
    renamed(section, key).unwrap_or_else(|| {
        format!("there is no key `{key}` in [{section}]; its keys are: {}", known_keys(section))
    })
}

fn known_sections() -> String {
    let mut sections: Vec<&str> = KEYS.iter().map(|(section, _)| *section).collect();
    sections.dedup();
    sections.join(", ")
}

impl Config {
    /// Overrides these settings with those of a file.
    pub(crate) fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let source = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(&source, "", None, error.to_string()))?;
        self.read(&source, &text)
    }

    /// Overrides these settings with those of a text. The error is the first one from the
    /// top.
    pub(crate) fn read(&mut self, source: &str, text: &str) -> Result<(), ConfigError> {
        let table = DeTable::parse(text).map_err(|error| {
            ConfigError::new(source, text, error.span(), error.message().to_owned())
        })?;
        let mut faults = Vec::new();
        for (section, keys) in table.get_ref() {
            let name = section.get_ref().as_ref();
            if !KEYS.iter().any(|(known, _)| *known == name) {
                faults.push((
                    section.span(),
                    format!(
                        "there is no section or key `{name}`; the sections are: {}",
                        known_sections()
                    ),
                ));
                continue;
            }
            let DeValue::Table(keys) = keys.get_ref() else {
                faults.push((
                    section.span(),
                    format!("`{name}` is a section: write [{name}] and its keys below"),
                ));
                continue;
            };
            for (key, value) in keys {
                match self.set(name, key.get_ref(), value.get_ref()) {
                    Some(Ok(())) => {}
                    Some(Err(reason)) => {
                        faults.push((value.span(), format!("{name}.{}: {reason}", key.get_ref())))
                    }
                    None => faults.push((key.span(), no_such_key(name, key.get_ref()))),
                }
            }
        }
        match faults.into_iter().min_by_key(|(span, _)| span.start) {
            Some((span, reason)) => Err(ConfigError::new(source, text, Some(span), reason)),
            None => Ok(()),
        }
    }

    /// Overrides one setting, `section.key=value`; the value is as in the file, but text
    /// needs no quotes.
    pub(crate) fn read_flag(&mut self, flag: &str) -> Result<(), ConfigError> {
        let refused = |reason: String| {
            ConfigError::new(
                &format!("--set {}", flag.split('=').next().unwrap_or(flag)),
                "",
                None,
                reason,
            )
        };
        let Some(((section, key), value)) = flag
            .split_once('=')
            .and_then(|(name, value)| Some((name.trim().split_once('.')?, value.trim())))
        else {
            return Err(refused("expected section.key=value".into()));
        };
        let parsed = DeValue::parse(value).map(|value| value.into_inner());
        let bare = || DeValue::String(value.into());
        let outcome = match parsed {
            Ok(parsed) => self.set(section, key, &parsed),
            Err(_) => self.set(section, key, &bare()),
        };
        match outcome {
            Some(outcome) => outcome.map_err(refused),
            None => Err(refused(no_such_key(section, key))),
        }
    }
}

/// The spans of all values in a text.
fn spans(text: &str) -> Vec<(Range<usize>, String, String)> {
    let table = DeTable::parse(text).map(|table| table.into_inner()).unwrap_or_default();
    let mut spans = Vec::new();
    for (section, keys) in &table {
        if let DeValue::Table(keys) = keys.get_ref() {
            spans.extend(keys.iter().map(|(key, value)| {
                (value.span(), section.get_ref().to_string(), key.get_ref().to_string())
            }));
        }
    }
    spans.sort_by_key(|(span, ..)| span.start);
    spans
}

/// Replaces the values in which a text differs from a configuration by
/// `value(section, key)`; comments and order stay.
fn replace(text: &str, config: &Config, value: impl Fn(&str, &str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (span, section, key) in spans(text) {
        let Some(value) = value(&section, &key) else { continue };
        let written = &text[span.clone()];
        // An equal value keeps its spelling.
        let mut same = config.clone();
        let stays = DeValue::parse(written).is_ok_and(|written| {
            matches!(same.set(&section, &key, written.get_ref()), Some(Ok(()))) && same == *config
        });
        out.push_str(&text[done..span.start]);
        out.push_str(if stays { written } else { &value });
        done = span.end;
    }
    out.push_str(&text[done..]);
    out
}

/// A configuration with all comments, the output of `--print-config`.
pub(crate) fn render(config: &Config) -> String {
    replace(DEFAULTS, config, |section, key| config.text(section, key))
}

/// Updates a file's text for CONFIG REWRITE: values are replaced in place, and missing
/// keys that differ from the defaults are added at the end of their section. Refuses a
/// file whose layout it can't update.
pub(crate) fn rewrite(text: &str, config: &Config) -> Result<String, String> {
    let mut text = replace(text, config, |section, key| config.file_text(section, key));
    let defaults = Config::defaults();
    for (section, key) in KEYS {
        let value = config.file_text(section, key).expect("every key of the table has a text");
        let there = spans(&text).iter().any(|(_, s, k)| s == section && k == key);
        if there || defaults.file_text(section, key).as_ref() == Some(&value) {
            continue;
        }
        match section_end(&text, section) {
            Some(end) => text.insert_str(end, &format!("\n{key} = {value}")),
            None => {
                let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
                text.push_str(&format!("{gap}\n[{section}]\n{key} = {value}\n"));
            }
        }
    }
    let mut reread = Config::defaults();
    match reread.read("", &text) {
        Ok(()) if reread == *config => Ok(text),
        _ => Err("it is not written in [sections] of one key a line".to_owned()),
    }
}

/// The end of the last line of a section's keys, or of its heading.
fn section_end(text: &str, section: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?.into_inner();
    let (heading, _) = table.iter().find(|(name, _)| name.get_ref() == section)?;
    let last = spans(text)
        .into_iter()
        .rfind(|(_, s, _)| s == section)
        .map_or(heading.span(), |(span, ..)| span);
    Some(text[last.end..].find('\n').map_or(text.len(), |newline| last.end + newline))
}
