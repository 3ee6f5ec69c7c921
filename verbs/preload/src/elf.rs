//! Finds libc's `dlsym` and `dlvsym` while ours interpose them, and which libraries are needed.
//!
//! Any way of asking the loader for a symbol by name goes through these two, and ours are found
//! first. So libc's symbol table is read as the loader does it: it is among what the loader has
//! mapped.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// From <elf.h>.
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

/// True if something that is loaded needs the library of that name: `mlx5` for `libmlx5.so.1`. A
/// library that was loaded by `dlopen` alone is needed by nobody.
pub(crate) fn is_needed(name: &[u8]) -> bool {
    let mut question = Question {
        name,
        is_needed: false,
    };
    // SAFETY: `needs` takes its last argument for a `Question`, which this is, alive through the
    // call.
    unsafe { libc::dl_iterate_phdr(Some(needs), (&raw mut question).cast()) };
    question.is_needed
}

struct Question<'a> {
    name: &'a [u8],
    is_needed: bool,
}

/// Looks whether one of the libraries that are loaded, or the program, needs that library.
unsafe extern "C" fn needs(
    library: *mut libc::dl_phdr_info,
    _size: usize,
    question: *mut c_void,
) -> c_int {
    // SAFETY: `is_needed` passes a `Question` that nobody else uses meanwhile.
    let question = unsafe { &mut *question.cast::<Question<'_>>() };
    // SAFETY: the loader passes a description that is valid through the call.
    let library = unsafe { &*library };
    // SAFETY: the loader passes the description of what is loaded.
    let Some((base, entries)) = (unsafe { dynamic(library) }) else {
        return 0;
    };
    let value_of = |tag: i64| entries.iter().find(|it| it.tag == tag).map(|it| it.value);
    let Some(strings) = value_of(dt::STRTAB) else {
        return 0;
    };
    let strings = relocated(base, strings) as *const c_char;
    for needed in entries.iter().filter(|it| it.tag == dt::NEEDED) {
        // SAFETY: the value is the place of a terminated string in the table of strings.
        let file = unsafe { CStr::from_ptr(strings.add(needed.value)) }.to_bytes();
        let rest = file
            .strip_prefix(b"lib")
            .and_then(|file| file.strip_prefix(question.name));
        question.is_needed |= rest.is_some_and(|rest| rest.starts_with(b".so"));
    }
    c_int::from(question.is_needed)
}

/// The tables of one library that are needed to find a symbol.
#[derive(Clone, Copy)]
struct Tables {
    base: usize,
    symbols: *const libc::Elf64_Sym,
    strings: *const c_char,
    hash: *const u32,
}

/// The address of a function of libc, or of libdl where that is a library of its own; null if there
/// is none.
pub(crate) fn libc_function(name: &CStr) -> *mut c_void {
    let mut search = Search {
        name,
        found: ptr::null_mut(),
    };
    // SAFETY: `look_in` takes its last argument for a `Search`, which this is, alive through the
    // call.
    unsafe { libc::dl_iterate_phdr(Some(look_in), (&raw mut search).cast()) };
    search.found
}

struct Search<'a> {
    name: &'a CStr,
    found: *mut c_void,
}

/// Looks for the symbol in one of the libraries that are loaded; ends the search when it is found.
unsafe extern "C" fn look_in(
    library: *mut libc::dl_phdr_info,
    _size: usize,
    search: *mut c_void,
) -> c_int {
    // SAFETY: `libc_function` passes a `Search` that nobody else uses meanwhile.
    let search = unsafe { &mut *search.cast::<Search<'_>>() };
    // SAFETY: the loader passes a description that is valid through the call.
    let library = unsafe { &*library };
    if library.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: the loader's name of the library, terminated.
    let path = unsafe { CStr::from_ptr(library.dlpi_name) }.to_bytes();
    let file = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    if !(file.starts_with(b"libc.so.") || file.starts_with(b"libdl.so.")) {
        return 0;
    }
    // SAFETY: the description is of a loaded library of glibc's, whose tables are mapped.
    if let Some(tables) = unsafe { tables(library) } {
        // SAFETY: as above.
        search.found = unsafe { tables.function(search.name) };
    }
    c_int::from(!search.found.is_null())
}

/// Where a library is loaded, and the entries of its dynamic section.
///
/// # Safety
///
/// `library` describes a library that is loaded, and stays loaded while the result is used.
unsafe fn dynamic(library: &libc::dl_phdr_info) -> Option<(usize, &[Dynamic])> {
    let base = usize::try_from(library.dlpi_addr).ok()?;
    if library.dlpi_phdr.is_null() {
        return None;
    }
    // SAFETY: the loader's description of the program headers.
    let headers =
        unsafe { std::slice::from_raw_parts(library.dlpi_phdr, usize::from(library.dlpi_phnum)) };
    let dynamic = headers
        .iter()
        .find(|header| header.p_type == libc::PT_DYNAMIC)?;
    let first = (base + usize::try_from(dynamic.p_vaddr).ok()?) as *const Dynamic;
    let mut count = 0;
    // SAFETY: the dynamic section is mapped, aligned, and ends with an entry DT_NULL.
    while unsafe { first.add(count).read() }.tag != dt::NULL {
        count += 1;
    }
    // SAFETY: as above.
    Some((base, unsafe { std::slice::from_raw_parts(first, count) }))
}

/// glibc has added the base where it can write to the section, which is nearly everywhere.
fn relocated(base: usize, value: usize) -> usize {
    if value < base { base + value } else { value }
}

/// # Safety
///
/// As for [`dynamic`].
unsafe fn tables(library: &libc::dl_phdr_info) -> Option<Tables> {
    // SAFETY: by the contract.
    let (base, entries) = unsafe { dynamic(library) }?;
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
    /// # Safety
    ///
    /// The tables are a loaded library's.
    unsafe fn function(self, name: &CStr) -> *mut c_void {
        // SAFETY: the table begins with four numbers: of buckets, of the first symbol that is in a
        // bucket, of 64-bit words in the filter that follows, and a shift that belongs to the
        // filter.
        let [buckets, first, filter, _] = unsafe { self.hash.cast::<[u32; 4]>().read() };
        if buckets == 0 {
            return ptr::null_mut();
        }
        let wanted = gnu_hash(name.to_bytes());
        // SAFETY: after the filter come the buckets, and after them the chains, as long as the
        // table of symbols.
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
            // SAFETY: a chain has a word for each symbol from the first on, and the last of a chain
            // is marked by its lowest bit, which ends the loop.
            let hash = unsafe { chains.add((number - first) as usize).read() };
            if hash | 1 == wanted | 1 {
                // SAFETY: the number is of a symbol.
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
            // SAFETY: writes the structure, for any address.
            assert_ne!(unsafe { libc::dladdr(found, &raw mut info) }, 0);
            assert_eq!(info.dli_saddr, found, "{name:?}");
        }
        // SAFETY: getpid takes nothing and returns a pid_t.
        let getpid: extern "C" fn() -> libc::pid_t =
            unsafe { std::mem::transmute(libc_function(c"getpid")) };
        assert_eq!(getpid(), std::process::id().cast_signed());
        assert!(libc_function(c"no_such_function_of_libc").is_null());
    }
}
