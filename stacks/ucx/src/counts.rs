//! The counters, and the summary that `REGCACHE_SUMMARY` asks for: one line at exit.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::notice::notice;

/// The counters of the process. No lookup that finds its gate open counts.
pub(crate) struct Counts {
    /// The caches that this library has served.
    pub(crate) caches: AtomicU64,
    /// The lookups that found a gate closed, and drained the monitor.
    pub(crate) closed: AtomicU64,
    /// The ranges that were passed to UCX as unmapped.
    pub(crate) reported: AtomicU64,
    /// The regions that were registered.
    pub(crate) registered: AtomicU64,
    /// The regions whose ranges the monitor refused to watch.
    pub(crate) refused: AtomicU64,
}

pub(crate) static COUNTS: Counts = Counts {
    caches: AtomicU64::new(0),
    closed: AtomicU64::new(0),
    reported: AtomicU64::new(0),
    registered: AtomicU64::new(0),
    refused: AtomicU64::new(0),
};

pub(crate) fn add_one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// The function that the loader calls when the program calls `exit` or returns from `main`.
extern "C" fn at_exit() {
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let caches = get(&COUNTS.caches);
    let Some(value) = env::var_os("REGCACHE_SUMMARY") else {
        return;
    };
    if caches == 0 {
        return;
    }
    let line = format!(
        "pid={} caches={caches} closed={} reported={} registered={} refused={}",
        std::process::id(),
        get(&COUNTS.closed),
        get(&COUNTS.reported),
        get(&COUNTS.registered),
        get(&COUNTS.refused),
    );
    let bytes = value.as_encoded_bytes();
    if bytes == b"1" {
        notice(format_args!("{line}"));
    } else if bytes.starts_with(b"/") {
        let file = OpenOptions::new().append(true).create(true).open(&value);
        let text = format!("regcache: ucx: {line}\n");
        if let Err(error) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
            notice(format_args!("cannot write to {}: {error}", value.display()));
        }
    } else if bytes != b"0" && !bytes.is_empty() {
        notice(format_args!(
            "REGCACHE_SUMMARY={} is refused, it must be 0, 1 or the absolute path of a file",
            value.display()
        ));
    }
}

#[used]
// SAFETY: the section holds addresses of functions without parameters, and the loader calls each
// once.
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;
