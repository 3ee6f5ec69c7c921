//! The end of a program whose standard output fails.

use std::panic;
use std::process::exit;

/// Makes a print that fails end the program with status 1 and a message, instead of a panic. For
/// example, a pipe has no reader any more, or a disk is full. A program calls this function first.
pub fn end_if_output_fails() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        // `print!` panics with this text, and has no other way to report the error.
        match panicked.payload_as_str() {
            Some(message) if message.starts_with("failed printing to stdout") => {
                eprintln!("regcache: {message}");
                exit(1);
            }
            _ => before(panicked),
        }
    }));
}
