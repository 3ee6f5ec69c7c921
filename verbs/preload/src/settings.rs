//! Reads the settings from the environment.

use std::env;
use std::ffi::{OsString, c_int};
use std::path::PathBuf;

/// The monitor to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Watching {
    /// The driver. Nothing is cached without it.
    #[default]
    Ummunotify,
    /// userfaultfd. Nothing is cached without it.
    Userfaultfd,
    /// The driver, or else userfaultfd. Nothing is cached without either.
    Auto,
}

/// The destination of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The report is not written.
    #[default]
    Nowhere,
    /// The report is written to stderr.
    Stderr,
    /// The report is appended to this file.
    File(PathBuf),
}

/// The settings of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `REGCACHE_PRELOAD`: true if registrations are cached.
    pub(crate) on: bool,
    /// `REGCACHE_MONITOR`: the monitor to use.
    pub(crate) monitor: Watching,
    /// `REGCACHE_REMOTE`: true if registrations with remote access are cached as well.
    pub(crate) keep_remote: bool,
    /// `REGCACHE_MAX_ENTRIES`: the limit on entries in each protection domain.
    pub(crate) max_entries: Option<u32>,
    /// `REGCACHE_MAX_BYTES`: the limit on pinned bytes in each protection domain.
    pub(crate) max_bytes: Option<usize>,
    /// `REGCACHE_SNAPSHOT`: the destination of the table of registrations.
    pub(crate) snapshot: Destination,
    /// `REGCACHE_SNAPSHOT_SIGNAL`: the signal at which the table is written as well.
    pub(crate) snapshot_signal: Option<c_int>,
    /// `REGCACHE_SUMMARY`: the destination of the summary.
    pub(crate) summary: Destination,
    /// `REGCACHE_DEBUG_OUTSTANDING`: true if the shim reports each `ibv_dereg_mr` of a registration
    /// that outstanding work may still use.
    pub(crate) report_outstanding: bool,
}

/// The names of all settings.
const NAMES: &[&str] = &[
    "REGCACHE_PRELOAD",
    "REGCACHE_MONITOR",
    "REGCACHE_REMOTE",
    "REGCACHE_MAX_ENTRIES",
    "REGCACHE_MAX_BYTES",
    "REGCACHE_SNAPSHOT",
    "REGCACHE_SNAPSHOT_SIGNAL",
    "REGCACHE_SUMMARY",
    "REGCACHE_DEBUG_OUTSTANDING",
];

impl Default for Settings {
    fn default() -> Self {
        Self {
            on: true,
            monitor: Watching::default(),
            keep_remote: false,
            max_entries: None,
            max_bytes: None,
            snapshot: Destination::default(),
            snapshot_signal: None,
            summary: Destination::default(),
            report_outstanding: false,
        }
    }
}

impl Settings {
    /// Reads the environment, and returns messages for the user. If a value is invalid, the
    /// function turns the cache off, because every program works without a cache. A name that is
    /// probably misspelt has no effect.
    pub(crate) fn read() -> (Self, Vec<String>) {
        let mut messages: Vec<_> = env::vars_os()
            .filter_map(|(name, _)| correction(name.to_str()?))
            .collect();
        let settings = Self::parse(|name| env::var_os(name)).unwrap_or_else(|refusal| {
            messages.push(refusal);
            Self {
                on: false,
                ..Self::default()
            }
        });
        (settings, messages)
    }

    fn parse(value_of: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let mut settings = Self::default();
        let set = |name: &str| {
            debug_assert!(NAMES.contains(&name), "{name} is missing in the list");
            value_of(name).filter(|value| !value.is_empty())
        };
        let one_of = |name: &str, words: &[&str]| match set(name) {
            None => Ok(None),
            Some(value) => match words.iter().position(|word| value == *word) {
                Some(which) => Ok(Some(which)),
                None => Err(refusal(name, &value, &words.join(" or "))),
            },
        };
        if let Some(which) = one_of("REGCACHE_PRELOAD", &["on", "off"])? {
            settings.on = which == 0;
        }
        let monitors = ["ummunotify", "userfaultfd", "auto"];
        if let Some(which) = one_of("REGCACHE_MONITOR", &monitors)? {
            settings.monitor = [Watching::Ummunotify, Watching::Userfaultfd, Watching::Auto][which];
        }
        if let Some(which) = one_of("REGCACHE_REMOTE", &["revoke", "keep"])? {
            settings.keep_remote = which == 1;
        }
        if let Some(value) = set("REGCACHE_MAX_ENTRIES") {
            let entries = value.to_str().and_then(|value| value.parse().ok());
            let whole = || refusal("REGCACHE_MAX_ENTRIES", &value, "a whole number");
            settings.max_entries = Some(entries.ok_or_else(whole)?);
        }
        if let Some(value) = set("REGCACHE_MAX_BYTES") {
            let bytes = value.to_str().and_then(bytes);
            let size = "a number of bytes, as 1048576, 1024K, 1M or 1G";
            let size = || refusal("REGCACHE_MAX_BYTES", &value, size);
            settings.max_bytes = Some(bytes.ok_or_else(size)?);
        }
        let destination = |name: &str| match set(name) {
            None => Ok(Destination::Nowhere),
            Some(value) => match value.to_str() {
                Some("0") => Ok(Destination::Nowhere),
                Some("1") => Ok(Destination::Stderr),
                _ if value.as_encoded_bytes().starts_with(b"/") => {
                    Ok(Destination::File(value.into()))
                }
                _ => Err(refusal(name, &value, "0, 1 or the absolute path of a file")),
            },
        };
        settings.snapshot = destination("REGCACHE_SNAPSHOT")?;
        settings.summary = destination("REGCACHE_SUMMARY")?;
        if let Some(which) = one_of("REGCACHE_SNAPSHOT_SIGNAL", &["USR1", "USR2"])? {
            settings.snapshot_signal = Some([libc::SIGUSR1, libc::SIGUSR2][which]);
            if settings.snapshot == Destination::Nowhere {
                return Err(
                    "REGCACHE_SNAPSHOT_SIGNAL is set and REGCACHE_SNAPSHOT is not: set it \
                            to 1 or to the path of a file. Nothing is cached"
                        .to_owned(),
                );
            }
        }
        if let Some(which) = one_of("REGCACHE_DEBUG_OUTSTANDING", &["0", "1"])? {
            settings.report_outstanding = which == 1;
        }
        Ok(settings)
    }
}

/// Returns a message about a name that resembles the name of a setting.
fn correction(name: &str) -> Option<String> {
    if !name.starts_with("REGCACHE_") || NAMES.contains(&name) {
        return None;
    }
    let resembling = |known: &&&str| strsim::osa_distance(known, name) <= 2;
    let known = NAMES.iter().find(resembling)?;
    Some(format!(
        "{name} is no setting and is ignored: it is probably meant to be {known}"
    ))
}

fn refusal(name: &str, value: &OsString, wanted: &str) -> String {
    let value = value.display();
    format!("{name}={value} is refused, it must be {wanted}: nothing is cached")
}

/// Parses a number of bytes. The suffix K, M or G stands for a power of 1024.
fn bytes(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: usize = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::parse(|name| {
            let found = variables.iter().find(|(known, _)| *known == name)?;
            Some(found.1.into())
        })
    }

    #[test]
    fn nothing_set_and_empty_values_are_the_defaults() {
        assert_eq!(parse(&[]), Ok(Settings::default()));
        let empty = [("REGCACHE_MONITOR", ""), ("REGCACHE_MAX_BYTES", "")];
        assert_eq!(parse(&empty), Ok(Settings::default()));
    }

    #[test]
    fn every_variable_is_read() {
        let settings = parse(&[
            ("REGCACHE_PRELOAD", "off"),
            ("REGCACHE_MONITOR", "auto"),
            ("REGCACHE_REMOTE", "keep"),
            ("REGCACHE_MAX_ENTRIES", "17"),
            ("REGCACHE_MAX_BYTES", "3G"),
            ("REGCACHE_SNAPSHOT", "1"),
            ("REGCACHE_SNAPSHOT_SIGNAL", "USR2"),
            ("REGCACHE_SUMMARY", "/tmp/summary"),
            ("REGCACHE_DEBUG_OUTSTANDING", "1"),
        ]);
        let expected = Settings {
            on: false,
            monitor: Watching::Auto,
            keep_remote: true,
            max_entries: Some(17),
            max_bytes: Some(3 << 30),
            snapshot: Destination::Stderr,
            snapshot_signal: Some(libc::SIGUSR2),
            summary: Destination::File("/tmp/summary".into()),
            report_outstanding: true,
        };
        assert_eq!(settings, Ok(expected));
    }

    #[test]
    fn a_misspelt_name_is_corrected_and_names_of_others_are_left_alone() {
        for (rest, meant) in [
            ("REMOT", "REGCACHE_REMOTE"),
            ("MAX_BYTE", "REGCACHE_MAX_BYTES"),
            ("SUMMRAY", "REGCACHE_SUMMARY"),
        ] {
            let name = format!("REGCACHE_{rest}");
            let message = correction(&name).unwrap();
            assert!(
                message.starts_with(&name) && message.ends_with(meant),
                "{message}"
            );
        }
        let other = format!("REGCACHE_{}", "PROGRAMS");
        for name in NAMES
            .iter()
            .copied()
            .chain([&*other, "REGCACHE_", "MONITOR"])
        {
            assert_eq!(correction(name), None);
        }
    }

    #[test]
    fn every_name_is_known() {
        for name in NAMES {
            let refused = parse(&[(name, "?")]).unwrap_err();
            assert!(refused.starts_with(name), "{refused}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (name, value) in [
            ("REGCACHE_PRELOAD", "1"),
            ("REGCACHE_MONITOR", "umunotify"),
            ("REGCACHE_REMOTE", "Keep"),
            ("REGCACHE_MAX_ENTRIES", "-1"),
            ("REGCACHE_MAX_ENTRIES", "4294967296"),
            ("REGCACHE_MAX_BYTES", "1T"),
            ("REGCACHE_MAX_BYTES", "K"),
            ("REGCACHE_MAX_BYTES", "18446744073709551615G"),
            ("REGCACHE_SNAPSHOT", "snapshot"),
            ("REGCACHE_SNAPSHOT_SIGNAL", "10"),
            ("REGCACHE_SUMMARY", "yes"),
            ("REGCACHE_DEBUG_OUTSTANDING", "yes"),
        ] {
            let refused = parse(&[(name, value)]).unwrap_err();
            assert!(
                refused.starts_with(&format!("{name}={value} ")),
                "{refused}"
            );
        }
    }
}
