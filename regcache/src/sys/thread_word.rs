//! `thread_word!`: a variable of each thread, for the libraries that C programs load.
//!
//! In a shared library, an access to a variable of `thread_local!` takes a call of
//! `__tls_get_addr`. The variable here is in the thread-local storage that the dynamic linker lays
//! out when it loads the library. So two instructions load it. Such storage is scarce, if a program
//! loads the library by `dlopen`. So a library should have only a few words of it.

/// Defines a module with the functions `get` and `set`, for a variable of one word. `operand` is
/// the initial value as an operand of `global_asm!`, and `value` is the same value in Rust.
#[doc(hidden)]
#[macro_export]
macro_rules! thread_word {
    (
        $(#[$doc:meta])*
        mod $name:ident = $symbol:literal: $type:ty, operand: { $($operand:tt)+ }, value: $value:expr
    ) => {
        $(#[$doc])*
        #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
        mod $name {
            use super::*;

            ::std::arch::global_asm!(
                concat!(".pushsection .tdata.", $symbol, ", \"awT\", @progbits"),
                ".balign 8",
                concat!(".hidden ", $symbol),
                concat!(".globl ", $symbol),
                concat!(".type ", $symbol, ", @object"),
                concat!(".size ", $symbol, ", 8"),
                concat!($symbol, ":"),
                ".quad {initial}",
                ".popsection",
                initial = $($operand)+,
            );

            #[inline(always)]
            pub(super) fn get() -> $type {
                let word: $type;
                // SAFETY: the instructions load this thread's copy of the variable above. Only this
                // thread accesses that copy.
                unsafe {
                    ::std::arch::asm!(
                        concat!("mov {word}, qword ptr [rip + ", $symbol, "@GOTTPOFF]"),
                        "mov {word}, qword ptr fs:[{word}]",
                        word = out(reg) word,
                        options(nostack, preserves_flags, readonly),
                    );
                }
                word
            }

            #[inline(always)]
            pub(super) fn set(to: $type) {
                // SAFETY: the instructions store to this thread's copy of the variable above. Only
                // this thread accesses that copy.
                unsafe {
                    ::std::arch::asm!(
                        concat!("mov {at}, qword ptr [rip + ", $symbol, "@GOTTPOFF]"),
                        "mov qword ptr fs:[{at}], {to}",
                        at = out(reg) _,
                        to = in(reg) to,
                        options(nostack, preserves_flags),
                    );
                }
            }
        }

        // On other machines there is no shorter way.
        $(#[$doc])*
        #[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
        mod $name {
            use super::*;

            ::std::thread_local! {
                static WORD: ::std::cell::Cell<$type> = const { ::std::cell::Cell::new($value) };
            }

            #[inline]
            pub(super) fn get() -> $type {
                WORD.get()
            }

            #[inline]
            pub(super) fn set(to: $type) {
                WORD.set(to);
            }
        }
    };
}
