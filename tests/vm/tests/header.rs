//! Tests the uapi header. A program must compile as C and as C++ if this header is the only header
//! that the program includes. The header must also agree with `ummunotify_sys`.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use ummunotify_sys::{self as abi, Event, Register, Register2};

fn compile(name: &str, source: &str, compiler: &[&str]) {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernel/include/uapi");
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&file, source).unwrap();
    let status = Command::new(compiler[0])
        .args(&compiler[1..])
        .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .arg(&include)
        .arg(&file)
        .status()
        .unwrap();
    assert!(status.success(), "{compiler:?}");
}

#[test]
fn the_header_compiles_alone_as_c_and_as_cxx() {
    let source = "#include <linux/ummunotify.h>\n#include <linux/ummunotify.h>\n\
                  int size(void);\nint size(void) { return sizeof(struct ummunotify_event); }\n";
    for standard in ["-std=c90", "-std=c99", "-std=c11", "-std=gnu17"] {
        compile("header.c", source, &["gcc", standard, "-pedantic"]);
    }
    for standard in ["-std=c++98", "-std=c++11", "-std=c++17"] {
        compile("header.cc", source, &["g++", standard, "-pedantic"]);
    }
    compile(
        "header32.c",
        source,
        &["gcc", "-m32", "-std=c99", "-pedantic", "-ffreestanding"],
    );
}

#[test]
fn the_header_and_the_rust_side_agree() {
    let exchange = nix::request_code_readwrite!(b'U', 1, size_of::<u32>());
    let register = nix::request_code_write!(b'U', 2, size_of::<Register>());
    let unregister = nix::request_code_write!(b'U', 3, size_of::<u64>());
    let register2 = nix::request_code_none!(b'U', 4);
    let region = "struct ummunotify_register_ioctl";
    let region2 = "struct ummunotify_register2";
    let event = "struct ummunotify_event";
    let facts = [
        ("UMMUNOTIFY_EXCHANGE_FEATURES".to_owned(), exchange as u64),
        ("UMMUNOTIFY_REGISTER_REGION".to_owned(), register as u64),
        ("UMMUNOTIFY_UNREGISTER_REGION".to_owned(), unregister as u64),
        ("UMMUNOTIFY_REGISTER_REGION2".to_owned(), register2),
        (
            "UMMUNOTIFY_REGISTER2_SIZE_VER0".to_owned(),
            size_of::<Register2>() as u64,
        ),
        (
            "UMMUNOTIFY_REGISTER_PROTECTION".to_owned(),
            u64::from(abi::PROTECTION),
        ),
        (
            "UMMUNOTIFY_REGISTER_MUST_BE_BACKED".to_owned(),
            u64::from(abi::MUST_BE_BACKED),
        ),
        (format!("sizeof({region2})"), size_of::<Register2>() as u64),
        (
            format!("offsetof({region2}, size)"),
            offset_of!(Register2, size) as u64,
        ),
        (
            format!("offsetof({region2}, flags)"),
            offset_of!(Register2, flags) as u64,
        ),
        (
            format!("offsetof({region2}, start)"),
            offset_of!(Register2, start) as u64,
        ),
        (
            format!("offsetof({region2}, end)"),
            offset_of!(Register2, end) as u64,
        ),
        (
            format!("offsetof({region2}, user_cookie)"),
            offset_of!(Register2, user_cookie) as u64,
        ),
        (
            "UMMUNOTIFY_EVENT_TYPE_INVAL".to_owned(),
            u64::from(abi::INVAL),
        ),
        (
            "UMMUNOTIFY_EVENT_TYPE_LAST".to_owned(),
            u64::from(abi::LAST),
        ),
        (
            "UMMUNOTIFY_EVENT_FLAG_HINT".to_owned(),
            u64::from(abi::HINT),
        ),
        (format!("sizeof({region})"), size_of::<Register>() as u64),
        (format!("sizeof({event})"), size_of::<Event>() as u64),
        (
            format!("offsetof({region}, start)"),
            offset_of!(Register, start) as u64,
        ),
        (
            format!("offsetof({region}, end)"),
            offset_of!(Register, end) as u64,
        ),
        (
            format!("offsetof({region}, user_cookie)"),
            offset_of!(Register, user_cookie) as u64,
        ),
        (
            format!("offsetof({region}, flags)"),
            offset_of!(Register, flags) as u64,
        ),
        (
            format!("offsetof({region}, reserved)"),
            offset_of!(Register, reserved) as u64,
        ),
        (
            format!("offsetof({event}, type)"),
            offset_of!(Event, kind) as u64,
        ),
        (
            format!("offsetof({event}, flags)"),
            offset_of!(Event, flags) as u64,
        ),
        (
            format!("offsetof({event}, hint_start)"),
            offset_of!(Event, hint_start) as u64,
        ),
        (
            format!("offsetof({event}, hint_end)"),
            offset_of!(Event, hint_end) as u64,
        ),
        (
            format!("offsetof({event}, user_cookie_counter)"),
            offset_of!(Event, user_cookie_counter) as u64,
        ),
    ];
    let mut source = "#include <stddef.h>\n#include <linux/ummunotify.h>\n".to_owned();
    for (expression, value) in facts {
        writeln!(
            source,
            "_Static_assert({expression} == {value}U, \"{expression}\");"
        )
        .unwrap();
    }
    compile("agree.c", &source, &["gcc", "-std=c11"]);
    // The structures and the numbers must be the same for a 32-bit caller.
    compile(
        "agree32.c",
        &source,
        &["gcc", "-m32", "-std=c11", "-ffreestanding"],
    );
}
