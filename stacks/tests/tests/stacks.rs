//! A short part of `cargo xtask stacks`: changes that the stacks' own monitors miss, in few
//! messages through each door of each stack that needs no launcher.
//!
//! The tests run one after the other, because they share the devices.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::{Mutex, PoisonError};

use regcache_stacks::plugins::Plugins;
use regcache_stacks::{Change, OF_THREADS, SHORT, Stack, cell};

/// The number of messages of a cell.
const MESSAGES: u64 = 100;

/// The number of messages of a cell with several threads. Some are much larger. Cells with fewer
/// messages may find nothing in the cache, because it evicts.
const MESSAGES_OF_THREADS: u64 = 100;

#[test]
fn no_message_through_a_door_is_wrong() {
    none_is_wrong(SHORT, &[Change::Raw, Change::Threads], MESSAGES);
}

#[test]
#[ignore = "takes a minute; `cargo xtask sanitize --stacks` runs it"]
fn no_message_of_several_threads_and_contexts_is_wrong() {
    none_is_wrong(OF_THREADS, &[Change::Raw], MESSAGES_OF_THREADS);
}

fn none_is_wrong(stacks: &[&Stack], changes: &[Change], messages: u64) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let plugins = Plugins::link().unwrap();
    let mut failures = Vec::new();
    for stack in stacks {
        let _devices = stack.device.prepare().unwrap();
        for monitor in stack.monitors.iter().filter(|it| it.is_door()) {
            for &change in changes {
                if !monitor.changes.contains(&change) {
                    continue;
                }
                let result = cell::run(stack, monitor, change, messages, &plugins);
                println!("{} {} {change}: {result:?}", stack.name, monitor.name);
                match result {
                    Ok(counts) if counts.wrong == 0 && counts.kept > 0 => {}
                    other => failures.push((stack.name, monitor.name, change, other)),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
