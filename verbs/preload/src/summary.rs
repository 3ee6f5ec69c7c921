//! Writes the reports of a process: the summary, which is one line at exit that shows how often the
//! shim helped, and the table of its registrations.

use std::env;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use regcache::Uncancelled;

use crate::counts::Gone;
use crate::notice::{lock, notice};
use crate::process::Process;
use crate::settings::Destination;

/// The function that the loader calls when the program calls `exit` or returns from `main`.
extern "C" fn at_exit() {
    let Some(process) = Process::started() else {
        return;
    };
    let _uncancelled = Uncancelled::begin();
    write_snapshot(process);
    process.end();
    write(&process.settings.summary, || line(process));
}

/// Writes a table of the registrations of each domain, if the user wants that.
pub(crate) fn write_snapshot(process: &Process) {
    write(&process.settings.snapshot, || {
        let mut text = format!("{} registrations:", of_process());
        for domain in process.domains() {
            let _ = write!(text, "\n{}", domain.snapshot().trim_end());
        }
        text
    });
}

/// Writes a report.
fn write(to: &Destination, report: impl FnOnce() -> String) {
    match to {
        Destination::Nowhere => {}
        Destination::Stderr => notice(format_args!("{}", report())),
        Destination::File(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            // The whole report is one write, so that those of several processes do not mix.
            let text = format!("regcache: {}\n", report());
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            if let Err(error) = written {
                notice(format_args!("cannot write to {}: {error}", path.display()));
            }
        }
    }
}

/// Returns the name and the number of this process.
fn of_process() -> String {
    let program = env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_name());
    let program = program.unwrap_or_default().display();
    format!("program={program} pid={}", std::process::id())
}

#[used]
// SAFETY: the section holds addresses of functions without parameters, and the loader calls each
// once.
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

fn line(process: &Process) -> String {
    let counts = &process.counts;
    let mut now = Gone::default();
    for domain in process.domains() {
        now.add(&domain.stats());
    }
    let gone = lock(&process.gone);
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (remote, flags, iova) = (get(&counts.remote), get(&counts.flags), get(&counts.iova));
    let (in_use, unseen, off) = (get(&counts.in_use), get(&counts.unseen), get(&counts.off));
    let cached = process.locals.sum(|local| &local.cached);
    let kept = process.locals.sum(|local| &local.kept);
    let refused = get(&counts.refused);
    let passed_on = remote + flags + iova + in_use + unseen + off;
    format!(
        "{} monitor={} asked={} cached={} hits={} made={} passed_on={passed_on} \
         (remote={remote} flags={flags} iova={iova} in_use={in_use} unseen={unseen} off={off}) \
         refused={} kept={} outstanding={} ended={} invalidated={} evicted={}",
        of_process(),
        process.monitor_name(),
        cached + passed_on + refused,
        cached,
        // If the program already holds the registration that a lookup finds, the shim passes the
        // call on. The cache counts the lookup as a hit, so the shim subtracts it.
        (now.hits + gone.hits).saturating_sub(in_use),
        get(&counts.made),
        refused,
        kept,
        get(&counts.outstanding),
        get(&counts.ended),
        now.invalidations + gone.invalidations,
        now.evictions + gone.evictions,
    )
}
