//! A short part of `cargo xtask stacks`: changes that the stacks' own monitors miss, in few
//! messages through each door of each stack that needs no second device of its own.

use regcache_stacks::plugins::Plugins;
use regcache_stacks::{Change, SHORT, cell};

/// The number of messages of a cell.
const MESSAGES: u64 = 100;

#[test]
fn no_message_through_a_door_is_wrong() {
    let plugins = Plugins::link().unwrap();
    let mut failures = Vec::new();
    for stack in SHORT {
        let _devices = stack.device.prepare().unwrap();
        for monitor in stack.monitors.iter().filter(|it| it.is_door()) {
            for change in [Change::Raw, Change::Threads] {
                if !monitor.changes.contains(&change) {
                    continue;
                }
                let result = cell::run(stack, monitor, change, MESSAGES, &plugins);
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
