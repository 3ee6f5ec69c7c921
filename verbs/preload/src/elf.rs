//! Finds libc's `dlsym` and `dlvsym`, and tells whether a library is needed.
//!
//! The shim interposes `dlsym` and `dlvsym`, so a lookup by name through the loader finds the
//! shim's functions. To find libc's, this file reads libc's symbol table as the loader does. The
//! loader has mapped that table.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// Tags of entries of the dynamic section, from <elf.h>.
mod dt {
    pub(super) const NULL: i64 = 0;
    pub(super) const NEEDED: i64 = 1;
    pub(super) const STRTAB: i64 = 5;
    pub(super) const SYMTAB: i64 = 6;
    pub(super) const GNU_HASH: i64 = 0x6fff_fef5;
}

/// An entry of the dynamic section.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// Returns true if the program or a loaded library is linked with the library of that name. The
/// name is `mlx5` for `libmlx5.so.1`. A library that was loaded only by `dlopen` does not count.
pub(crate) fn is_needed(name: &[u8]) -> bool {
    let mut question = Question {
        name,
        is_needed: false,
    };
    // SAFETY: `needs` expects a pointer to a `Question` as its last argument. `question` is a
    // `Question`, and outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(needs), (&raw mut question).cast()) };
    question.is_needed
}

struct Question<'a> {
    name: &'a [u8],
    is_needed: bool,
}

/// Sets `is_needed` if this loaded object (the program or a library) is linked with the library of
/// that name.
unsafe extern "C" fn needs(
    library: *mut libc::dl_phdr_info,
    _size: usize,
    question: *mut c_void,
) -> c_int {
    // SAFETY: the function `is_needed` passes a pointer to its local `Question`, and no other code
    // uses that `Question` during the call.
    let question = unsafe { &mut *question.cast::<Question<'_>>() };
    // SAFETY: the loader passes a pointer to a description that is valid during the call.
    let library = unsafe { &*library };
    // SAFETY: `library` describes a loaded object, which stays loaded during the call.
    let Some((base, entries)) = (unsafe { dynamic(library) }) else {
        return 0;
    };
    let value_of = |tag: i64| entries.iter().find(|it| it.tag == tag).map(|it| it.value);
    let Some(strings) = value_of(dt::STRTAB) else {
        return 0;
    };
    let strings = relocated(base, strings) as *const c_char;
    for needed in entries.iter().filter(|it| it.tag == dt::NEEDED) {
        // SAFETY: the value of a NEEDED entry is the offset of a terminated string in the string
        // table.
        let file = unsafe { CStr::from_ptr(strings.add(needed.value)) }.to_bytes();
        let rest = file
            .strip_prefix(b"lib")
            .and_then(|file| file.strip_prefix(question.name));
        question.is_needed |= rest.is_some_and(|rest| rest.starts_with(b".so"));
    }
    c_int::from(question.is_needed)
}

/// The tables of one library that the lookup of a symbol reads.
#[derive(Clone, Copy)]
struct Tables {
    base: usize,
    symbols: *const libc::Elf64_Sym,
    strings: *const c_char,
    hash: *const u32,
}

/// Returns the address of a function of libc, or of libdl if glibc is so old that libdl is
/// separate. Returns null if neither library has the function.
///
/// Sanitizers and other libraries interpose `dl_iterate_phdr`, and may look functions up before
/// their own is ready. So this function reads the loader's list of libraries itself. Other threads
/// may load and unload libraries meanwhile. But the search ends at libc, and the libraries before it
/// in the list were loaded with the program and are never unloaded.
pub(crate) fn libc_function(name: &CStr) -> *mut c_void {
    // SAFETY: the loader has set up its structure before any other code runs.
    let mut next = unsafe { _r_debug.map };
    // SAFETY: the pointer is null or points to an element of the list, as above.
    while let Some(library) = unsafe { next.as_ref() } {
        // SAFETY: as above.
        let found = unsafe { library.function(name) };
        if !found.is_null() {
            return found;
        }
        next = library.next;
    }
    ptr::null_mut()
}

/// `struct r_debug`, by which the loader shows its list of libraries to debuggers (<link.h>).
#[repr(C)]
struct Debug {
    version: c_int,
    map: *const LinkMap,
}

/// `struct link_map`: a loaded library.
#[repr(C)]
struct LinkMap {
    base: usize,
    path: *const c_char,
    dynamic: *const Dynamic,
    next: *const LinkMap,
}

unsafe extern "C" {
    static _r_debug: Debug;
}

impl LinkMap {
    /// Returns the address of the function, if the library is libc or libdl and defines it.
    ///
    /// # Safety
    ///
    /// The library is loaded.
    unsafe fn function(&self, name: &CStr) -> *mut c_void {
        if self.path.is_null() || self.dynamic.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: the pointer is not null, so it points to the library's terminated path.
        let path = unsafe { CStr::from_ptr(self.path) }.to_bytes();
        let file = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        if !(file.starts_with(b"libc.so.") || file.starts_with(b"libdl.so.")) {
            return ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of this function.
        let entries = unsafe { entries(self.dynamic) };
        // SAFETY: the library is one of glibc, whose tables are mapped.
        tables(self.base, entries).map_or(ptr::null_mut(), |it| unsafe { it.function(name) })
    }
}

/// Returns the load address of a library and the entries of its dynamic section.
///
/// # Safety
///
/// `library` describes a loaded object, and the object stays loaded while the result is used.
unsafe fn dynamic(library: &libc::dl_phdr_info) -> Option<(usize, &[Dynamic])> {
    let base = usize::try_from(library.dlpi_addr).ok()?;
    if library.dlpi_phdr.is_null() {
        return None;
    }
    // SAFETY: the loader describes `dlpi_phnum` program headers at `dlpi_phdr`.
    let headers =
        unsafe { std::slice::from_raw_parts(library.dlpi_phdr, usize::from(library.dlpi_phnum)) };
    let dynamic = headers
        .iter()
        .find(|header| header.p_type == libc::PT_DYNAMIC)?;
    let first = (base + usize::try_from(dynamic.p_vaddr).ok()?) as *const Dynamic;
    // SAFETY: the object is loaded, so its dynamic section is mapped.
    Some((base, unsafe { entries(first) }))
}

/// Returns the entries of the dynamic section that begins at `first`.
///
/// # Safety
///
/// The dynamic section is mapped while the result is used.
unsafe fn entries<'a>(first: *const Dynamic) -> &'a [Dynamic] {
    let mut count = 0;
    // SAFETY: the dynamic section is aligned, and it ends with a DT_NULL entry.
    while unsafe { first.add(count).read() }.tag != dt::NULL {
        count += 1;
    }
    // SAFETY: the loop above read these entries.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// Returns the address that an entry of the dynamic section holds. glibc has usually added the load
/// address to the entry, but it cannot write to a read-only section.
fn relocated(base: usize, value: usize) -> usize {
    if value < base { base + value } else { value }
}

/// Returns the tables of a library; `None` if one of them is missing.
fn tables(base: usize, entries: &[Dynamic]) -> Option<Tables> {
    let address = |tag: i64| {
        let entry = entries.iter().find(|it| it.tag == tag)?;
        (entry.value != 0).then(|| relocated(base, entry.value))
    };
    Some(Tables {
        base,
        symbols: address(dt::SYMTAB)? as *const _,
        strings: address(dt::STRTAB)? as *const _,
        hash: address(dt::GNU_HASH)? as *const _,
    })
}

impl Tables {
    /// Returns the address of the function; null if the library does not define it.
    ///
    /// # Safety
    ///
    /// The tables belong to a loaded library.
    unsafe fn function(self, name: &CStr) -> *mut c_void {
        // SAFETY: the hash table begins with four numbers: the number of buckets, the number of the
        // first symbol in a bucket, the number of 64-bit words in the filter, and the filter's
        // shift.
        let [buckets, first, filter, _] = unsafe { self.hash.cast::<[u32; 4]>().read() };
        if buckets == 0 {
            return ptr::null_mut();
        }
        let wanted = gnu_hash(name.to_bytes());
        // SAFETY: the buckets follow the filter, and the chains follow the buckets. The chains are
        // as long as the rest of the symbol table.
        let (bucket, chains) = unsafe {
            let table = self.hash.add(4 + 2 * filter as usize);
            let bucket = table.add((wanted % buckets) as usize).read();
            (bucket, table.add(buckets as usize))
        };
        if bucket < first {
            return ptr::null_mut();
        }
        let mut number = bucket;
        loop {
            // SAFETY: the chains have one word for each symbol from `first` on. The lowest bit
            // marks the last word of a chain, and the loop ends there.
            let hash = unsafe { chains.add((number - first) as usize).read() };
            if hash | 1 == wanted | 1 {
                // SAFETY: `number` is the number of a symbol in the table.
                let symbol = unsafe { &*self.symbols.add(number as usize) };
                // SAFETY: the symbol's name is a terminated string in the table of strings.
                let called = unsafe { CStr::from_ptr(self.strings.add(symbol.st_name as usize)) };
                if called == name && symbol.st_value != 0 {
                    return (self.base + symbol.st_value as usize) as *mut c_void;
                }
            }
            if hash & 1 == 1 {
                return ptr::null_mut();
            }
            number += 1;
        }
    }
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, &byte| {
        hash.wrapping_mul(33).wrapping_add(u32::from(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libcs_functions_are_found_where_they_are() {
        for name in [c"dlvsym", c"dlsym", c"getpid", c"qsort"] {
            let found = libc_function(name);
            let mut info = libc::Dl_info {
                dli_fname: ptr::null(),
                dli_fbase: ptr::null_mut(),
                dli_sname: ptr::null(),
                dli_saddr: ptr::null_mut(),
            };
            // SAFETY: `dladdr` accepts any address and writes only `info`.
            assert_ne!(unsafe { libc::dladdr(found, &raw mut info) }, 0);
            assert_eq!(info.dli_saddr, found, "{name:?}");
        }
        // SAFETY: `getpid` has no parameters and returns a `pid_t`.
        let getpid: extern "C" fn() -> libc::pid_t =
            unsafe { std::mem::transmute(libc_function(c"getpid")) };
        assert_eq!(getpid(), std::process::id().cast_signed());
        assert!(libc_function(c"no_such_function_of_libc").is_null());
    }
}
