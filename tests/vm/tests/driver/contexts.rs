//! What an administrator sees of the open files.

use std::fs;

use regcache_tests_vm::{Child, PAGE};

use crate::{debugfs, watched};

fn contexts() -> String {
    fs::read_to_string(debugfs().join("ummunotify/contexts")).unwrap()
}

/// The lines about files that this process opened, without pid and name.
fn ours() -> Vec<String> {
    let all = contexts();
    let mut lines = all.lines();
    assert_eq!(
        lines.next(),
        Some("pid\tcomm\tranges\tcounter\treadable\trunning")
    );
    let pid = std::process::id().to_string();
    let own = lines.filter_map(|line| line.strip_prefix(&pid)?.strip_prefix('\t'));
    let without_name = own.filter_map(|line| line.split_once('\t'));
    without_name.map(|(_, rest)| rest.to_owned()).collect()
}

#[test]
fn each_open_file_is_a_line_with_its_figures() {
    // By itself: other tests of this process open files as well.
    let alone = Child::fork(|| {
        let nothing = ours().is_empty();
        let (device, memory) = watched(3);
        let quiet = ours() == ["3\t0\t0\t0"];
        memory.unmap(1, 1).unwrap();
        device.watch(memory.page(0), PAGE, 9).unwrap();
        let hit = ours() == ["4\t1\t1\t0"];
        device.drain().unwrap();
        let (another, _memory) = watched(2);
        let two = ours() == ["4\t1\t0\t0", "2\t0\t0\t0"];
        drop(device);
        let one = ours() == ["2\t0\t0\t0"];
        drop(another);
        nothing && quiet && hit && two && one && ours().is_empty()
    });
    assert!(alone.unwrap().succeeded().unwrap());
}

#[test]
fn a_name_cannot_make_lines_of_its_own() {
    let name = Child::fork(|| {
        // SAFETY: a string literal with its end.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"a\nb\tc".as_ptr()) };
        let (_device, _memory) = watched(1);
        ours() == ["1\t0\t0\t0"] && contexts().contains("\ta\\012b\\011c\t")
    });
    assert!(name.unwrap().succeeded().unwrap());
}
