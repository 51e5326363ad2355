//! The settings of a table that change online. One entry is the whole truth about an env:
//! its name, what it does, what it takes.

/// The env that gives writes without a TTL one.
pub const DEFAULT_TTL: &str = "default_ttl";

/// One env.
#[derive(Debug)]
pub struct Env {
    /// Its name.
    pub name: &'static str,
    /// Its effect and its values, in a sentence.
    pub summary: &'static str,
    check: fn(&str) -> bool,
}

/// Every env there is.
pub const ENVS: &[Env] = &[Env {
    name: DEFAULT_TTL,
    summary: "seconds, 1 to 4294967295: rows written without a TTL live so long, and so do those \
              that are there already, from now on",
    check: |value| {
        value
            .parse::<u32>()
            .is_ok_and(|seconds| seconds > 0 && value.starts_with(|c: char| c.is_ascii_digit()))
    },
}];

/// An unknown env, or a value that it does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Not in [`ENVS`].
    #[error("no such env '{0}'; there are: {known}", known = names())]
    Unknown(String),
    /// Its own check says no.
    #[error("'{value}' is not a value of {name} ({summary})")]
    BadValue {
        /// The env.
        name: &'static str,
        /// Its values.
        summary: &'static str,
        /// The refused value.
        value: String,
    },
}

fn names() -> String {
    ENVS.iter().map(|env| env.name).collect::<Vec<_>>().join(", ")
}

/// An env by name.
pub fn find(name: &str) -> Result<&'static Env, EnvError> {
    ENVS.iter().find(|env| env.name == name).ok_or_else(|| EnvError::Unknown(name.to_owned()))
}

/// Refuses unknown envs and values that they do not take.
pub fn check(name: &str, value: &str) -> Result<(), EnvError> {
    let env = find(name)?;
    match (env.check)(value) {
        true => Ok(()),
        false => Err(EnvError::BadValue {
            name: env.name,
            summary: env.summary,
            value: value.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ttl_takes_whole_seconds() {
        for fine in ["1", "86400", "4294967295"] {
            assert_eq!(check(DEFAULT_TTL, fine), Ok(()), "{fine}");
        }
        for bad in ["", "0", "-1", "+1", "1.5", "4294967296", "1h", " 1"] {
            assert!(matches!(check(DEFAULT_TTL, bad), Err(EnvError::BadValue { .. })), "{bad}");
        }
    }

    #[test]
    fn unknown_envs_name_the_known() {
        assert_eq!(
            check("default_tll", "1").unwrap_err().to_string(),
            "no such env 'default_tll'; there are: default_ttl"
        );
    }
}
