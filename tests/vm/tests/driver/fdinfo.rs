//! Tests the `fdinfo` of an open file, which shows an administrator the state of the file.

use std::fs;

use regcache_tests_vm::{Child, DriverFile, PAGE};

use crate::watched;

/// Returns the number with this name in the `fdinfo` of the file.
fn figure(device: &DriverFile, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.raw())).unwrap();
    let value = text.lines().find_map(|line| {
        line.strip_prefix("ummunotify-")?
            .strip_prefix(name)?
            .strip_prefix(":\t")
    });
    value
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .parse()
        .unwrap()
}

/// Returns four numbers from `fdinfo`: the number of ranges, the counter, 1 if the file is
/// readable, and the number of invalidations in flight.
fn figures(device: &DriverFile) -> [u64; 4] {
    ["ranges", "counter", "readable", "in-flight"].map(|name| figure(device, name))
}

#[test]
fn each_open_file_has_its_figures() {
    // The test runs in a child, because other tests of this process watch memory too.
    let alone = Child::fork(|| {
        let (device, memory) = watched(3);
        let at_first = figures(&device) == [3, 0, 0, 0];
        memory.unmap(1, 1).unwrap();
        device.watch(memory.page(0), PAGE, 9).unwrap();
        let invalidated = figures(&device) == [4, 1, 1, 0];
        device.drain().unwrap();
        let (another, _memory) = watched(2);
        let both = figures(&device) == [4, 1, 0, 0] && figures(&another) == [2, 0, 0, 0];
        at_first && invalidated && both
    });
    assert!(alone.unwrap().succeeded().unwrap());
}

#[test]
fn the_ranges_of_all_files_of_a_user_are_in_each() {
    let alone = Child::fork(|| {
        // SAFETY: the call accesses no memory, and the child has only one thread.
        assert_eq!(unsafe { libc::setuid(60_123) }, 0);
        let (one, _memory) = watched(3);
        let file = figure(&one, "user-ranges") - 3;
        let (two, _memory) = watched(5);
        let both = [&one, &two].map(|device| figure(device, "user-ranges"));
        drop(two);
        file > 0 && both == [2 * file + 8; 2] && figure(&one, "user-ranges") == file + 3
    });
    assert!(alone.unwrap().succeeded().unwrap());
}
