//! Runs a sequence of steps on the driver and on the model, and compares the two after each step.

use std::fmt::Debug;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use regcache_tests_vm::Child;
use ummunotify_sys::{self as abi, Event, Register, Register2};

use crate::child::{self, Forked};
use crate::model::{Arena, BASE, Invalidation, PAGE, PAGES, Span, Watch};
use crate::op::{Access, BadMapping, BadRange, BadRegister2, CHILDREN, FILES, Op, Run};
use crate::sys::{self, Counter};

/// The address of the buffers for reads. Each buffer is a writable page, and an inaccessible page
/// follows the buffer.
pub(crate) const BUFFER: u64 = BASE - 0x1000_0000;
const BUFFERS: u64 = 4;

fn buffer_end(buffer: usize) -> u64 {
    BUFFER + (2 * buffer as u64 + 1) * PAGE
}

/// Unmaps the arena, and maps the buffers.
pub(crate) fn prepare() -> Check {
    let unmapped = sys::unmap(BASE - PAGE, (PAGES as u64 + 8) * PAGE);
    unmapped.map_err(failed("munmap"))?;
    let mapped = sys::map(BUFFER, 2 * BUFFERS * PAGE, Access::Write);
    mapped.map_err(failed("mmap"))?;
    for buffer in 0..BUFFERS as usize {
        let fenced = sys::protect(buffer_end(buffer), PAGE, Access::Nothing);
        fenced.map_err(failed("mprotect"))?;
    }
    Ok(())
}

/// The result of a check. The error describes the difference between the driver and the model.
pub(crate) type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            return Err(format!($($what)*));
        }
    };
}

pub(crate) use ensure;

/// Returns an error if the result of a call differs from the result of the model.
pub(crate) fn same<T: Debug + PartialEq>(call: &str, said: &T, expected: &T) -> Check {
    ensure!(
        said == expected,
        "{call} returned {said:?}, not {expected:?}"
    );
    Ok(())
}

pub(crate) fn failed<E: Debug>(call: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{call}: {error:?}")
}

/// An open file of the driver, and the model of this file.
pub(crate) struct File {
    pub(crate) watch: Watch,
    /// The file descriptors of the file. The first file descriptor is that of `open`, until a step
    /// closes it.
    fds: Vec<OwnedFd>,
    turn: usize,
    counter: Counter,
    more_counters: Vec<Counter>,
    blocking: bool,
}

impl File {
    pub(crate) fn open(exchanges: u8) -> Result<Self, String> {
        let fd = sys::open().map_err(failed("open"))?;
        let mut watch = Watch::new();
        for _ in 0..exchanges {
            exchange(&fd, &mut watch, 0xdead_beef)?;
        }
        let counter = Counter::map(&fd).map_err(failed("mmap"))?;
        watch.used = true;
        Ok(Self {
            watch,
            fds: vec![fd],
            turn: 0,
            counter,
            more_counters: Vec::new(),
            blocking: false,
        })
    }

    /// Returns a file descriptor of the file. Successive calls return all file descriptors in turn.
    pub(crate) fn fd(&mut self) -> &OwnedFd {
        self.turn = (self.turn + 1) % self.fds.len();
        &self.fds[self.turn]
    }

    /// Records these invalidations in the model, and checks the counter.
    pub(crate) fn invalidated(&mut self, made: &[Invalidation]) -> Result<Option<u64>, String> {
        let (before, now) = (self.watch.counter, self.counter.load());
        let raised = now.checked_sub(before);
        let raised = raised.ok_or_else(|| format!("the counter fell from {before} to {now}"))?;
        self.watch.invalidate(made, raised)
    }
}

fn exchange(fd: &OwnedFd, watch: &mut Watch, wanted: u32) -> Check {
    let mut mask = wanted;
    let said = sys::exchange(fd, &mut mask);
    if watch.used {
        same("EXCHANGE_FEATURES", &said, &Err(Errno::EINVAL))?;
    } else {
        same("EXCHANGE_FEATURES", &(said, mask), &(Ok(()), 0))?;
    }
    watch.used = true;
    Ok(())
}

/// The state of the fuzzer: all files, all children, and the arena.
pub(crate) struct World {
    files: [Option<File>; FILES],
    arena: Arena,
    children: [Option<Forked>; CHILDREN],
}

impl World {
    /// Makes a world of two open files and an empty arena.
    pub(crate) fn new() -> Result<Self, String> {
        prepare()?;
        Ok(Self {
            files: [Some(File::open(0)?), Some(File::open(1)?), None],
            arena: Arena::new(),
            children: [const { None }; CHILDREN],
        })
    }

    /// Makes one step, and then checks every file.
    pub(crate) fn step(&mut self, op: Op) -> Check {
        match op {
            Op::Open { file, exchanges } if self.files[file].is_none() => {
                self.files[file] = Some(File::open(exchanges)?);
            }
            Op::Open { .. } => {}
            Op::Close { file } => self.files[file] = None,
            Op::Fork { child, keep } => self.fork(child, keep)?,
            Op::ChildDrops { child } => {
                if let Some(forked) = &self.children[child] {
                    ensure!(forked.drop_pages(), "a child could not unmap its arena");
                    self.arena.child_leaves(child);
                }
            }
            Op::ChildExits { child } => self.child_exits(child),
            Op::PassToChild { child, file } => {
                if let (Some(forked), Some(file)) = (&self.children[child], &mut self.files[file]) {
                    let refused = forked.tries(file.fd().as_fd());
                    let refused = refused.map_err(failed("sendmsg"))?;
                    ensure!(refused, "a child was not refused a passed file descriptor");
                }
            }
            Op::ReadIntoArena {
                file,
                page,
                events,
                before_end,
            } => self.read_into_arena(file, page, events, before_end)?,
            Op::Exchange { file, .. }
            | Op::Register { file, .. }
            | Op::RegisterBad { file, .. }
            | Op::Register2 { file, .. }
            | Op::Register2Bad { file, .. }
            | Op::Unregister { file, .. }
            | Op::UnregisterNowhere { file }
            | Op::Unknown { file, .. }
            | Op::Read { file, .. }
            | Op::Drain { file }
            | Op::Blocking { file, .. }
            | Op::Dup { file }
            | Op::PassToSelf { file }
            | Op::CloseDup { file }
            | Op::MapCounter { file }
            | Op::UnmapCounter { file }
            | Op::MapCounterBadly { file, .. }
            | Op::AbuseCounter { file } => {
                if let Some(file) = &mut self.files[file] {
                    on_file(file, &self.arena, op)?;
                }
            }
            Op::Touch { .. }
            | Op::Map { .. }
            | Op::Unmap { .. }
            | Op::UnmapByVforked { .. }
            | Op::DontNeed { .. }
            | Op::Free { .. }
            | Op::Protect { .. }
            | Op::Resize { .. }
            | Op::Move { .. } => {
                let made = on_memory(&mut self.arena, op)?;
                self.invalidated(&made)?;
            }
        }
        self.check()
    }

    /// Checks the counters of all files, and the results of `poll`.
    fn check(&self) -> Check {
        let mut polled = [libc::pollfd {
            fd: -1,
            events: libc::POLLIN,
            revents: 0,
        }; FILES];
        for (file, polled) in self.files.iter().zip(&mut polled) {
            let Some(file) = file else { continue };
            same("the counter", &file.counter.load(), &file.watch.counter)?;
            for counter in &file.more_counters {
                same("another mapping", &counter.load(), &file.watch.counter)?;
            }
            polled.fd = file.fds[file.turn].as_raw_fd();
        }
        // SAFETY: the array is writable and has `FILES` elements.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), FILES as libc::nfds_t, 0) };
        Errno::result(ready).map_err(failed("poll"))?;
        for (file, polled) in self.files.iter().zip(&polled) {
            let Some(file) = file else { continue };
            let readable = file.watch.is_readable();
            let expected = if readable { libc::POLLIN } else { 0 };
            same("poll", &polled.revents, &expected)?;
        }
        Ok(())
    }

    /// Records these invalidations in the models of all files, and checks the counters of the
    /// files.
    fn invalidated(&mut self, made: &[Invalidation]) -> Check {
        let mut times = None;
        for (i, file) in self.files.iter_mut().enumerate() {
            let Some(file) = file else { continue };
            let found = file.invalidated(made);
            let found = found.map_err(|why| format!("file {i}: {why}"))?;
            ensure!(
                times.is_none() || found.is_none() || times == found,
                "two files counted the same invalidations differently: {times:?} and {found:?}"
            );
            times = times.or(found);
        }
        Ok(())
    }

    fn fork(&mut self, child: usize, keep: bool) -> Check {
        self.child_exits(child);
        let fds = self.files.iter().flatten().flat_map(|file| &file.fds);
        let forked = Forked::new(fds, BUFFER).map_err(failed("fork"))?;
        self.arena.fork(child);
        ensure!(forked.was_refused(), "a child was not refused");
        self.children[child] = Some(forked);
        if !keep {
            self.child_exits(child);
        }
        Ok(())
    }

    fn child_exits(&mut self, child: usize) {
        self.children[child] = None;
        self.arena.child_leaves(child);
    }

    /// Reads events into the arena. The driver writes the events, and such a write may copy a
    /// watched page. A copy causes an invalidation. A write may also fault after other writes have
    /// succeeded.
    fn read_into_arena(
        &mut self,
        i: usize,
        page: usize,
        events: usize,
        before_end: usize,
    ) -> Check {
        let Some(file) = &mut self.files[i] else {
            return Ok(());
        };
        let due = file.watch.due(events);
        let unsure = |page| usize::from(self.arena.may_be_copied(page));
        if due.events == 0 && file.blocking || unsure(page) + unsure(page + 1) > 1 {
            return Ok(());
        }
        let address = BASE + (page as u64 + 1) * PAGE - (before_end * size_of::<Event>()) as u64;
        let said = sys::read(file.fd(), address, events * size_of::<Event>());
        if due.events == 0 {
            return same("read", &said, &Err(Errno::EAGAIN));
        }
        let mut made = Vec::new();
        let mut faults = false;
        let parts = [
            (page, due.events.min(before_end)),
            (page + 1, due.events.saturating_sub(before_end)),
        ];
        for (page, events) in parts {
            if events > 0 && !faults {
                faults = self.arena.access(page) != Some(Access::Write);
                if !faults {
                    made.extend(self.arena.touch(page, true));
                }
            }
        }
        file.watch.pick_up(due, due.events);
        if faults {
            same("read", &said, &Err(Errno::EFAULT))?;
        } else {
            same("read", &said, &Ok(due.events * size_of::<Event>()))?;
            file.watch.arrived(due, &events_at(address, due.events))?;
        }
        self.invalidated(&made)?;
        if faults && let Some(file) = &mut self.files[i] {
            file.watch.put_back(due);
        }
        Ok(())
    }
}

/// Makes a step on the memory of an arena. Returns the invalidations that the model predicts for
/// the step.
pub(crate) fn on_memory(arena: &mut Arena, op: Op) -> Result<Vec<Invalidation>, String> {
    let mut made = Vec::new();
    match op {
        Op::Touch { page, write } => {
            let access = arena.access(page);
            let allowed = access == Some(Access::Write) || access == Some(Access::Read) && !write;
            if allowed {
                sys::touch(BASE + page as u64 * PAGE, write);
                made.extend(arena.touch(page, write));
            }
        }
        Op::Map { run, access } => {
            let span = Span::from(run);
            let said = sys::map(span.start, span.end - span.start, access);
            same("mmap", &said, &Ok(()))?;
            made.extend(arena.map(run, access));
        }
        Op::Unmap { run } => {
            let span = Span::from(run);
            let said = sys::unmap(span.start, span.end - span.start);
            same("munmap", &said, &Ok(()))?;
            made.extend(arena.unmap(run));
        }
        Op::UnmapByVforked { run } => {
            let unmap = |run: usize| {
                let (first, pages) = (run as u64 >> 8, run as u64 & 0xff);
                sys::unmap(BASE + first * PAGE, pages * PAGE).is_ok()
            };
            let said = Child::sharing_memory(unmap, run.first << 8 | run.pages);
            ensure!(matches!(said, Ok(true)), "munmap after vfork: {said:?}");
            made.extend(arena.unmap(run));
        }
        Op::DontNeed { run } | Op::Free { run } => {
            let free = matches!(op, Op::Free { .. });
            let advice = if free {
                libc::MADV_FREE
            } else {
                libc::MADV_DONTNEED
            };
            let span = Span::from(run);
            let said = sys::advise(span.start, span.end - span.start, advice);
            let (invalidation, whole) = arena.advise(run, free);
            same("madvise", &said, &whole.then_some(()).ok_or(Errno::ENOMEM))?;
            made.push(invalidation);
        }
        Op::Protect { run, access } => {
            let span = Span::from(run);
            let said = sys::protect(span.start, span.end - span.start, access);
            let whole = arena.protect(run, access);
            same("mprotect", &said, &whole.then_some(()).ok_or(Errno::ENOMEM))?;
        }
        Op::Resize { run, new_pages } if arena.is_one_mapping(run) => {
            resize(arena, run, new_pages, &mut made)?;
        }
        Op::Move {
            run,
            to,
            new_pages,
            keep_old,
        } => {
            let new_pages = if keep_old {
                run.pages
            } else {
                new_pages.min(run.pages)
            };
            if arena.is_one_mapping(run) && to + new_pages <= PAGES {
                move_to(arena, run, to, new_pages, keep_old, &mut made)?;
            }
        }
        _ => {}
    }
    Ok(made)
}

fn resize(arena: &mut Arena, run: Run, new_pages: usize, made: &mut Vec<Invalidation>) -> Check {
    let span = Span::from(run);
    let bytes = span.end - span.start;
    let new_bytes = new_pages as u64 * PAGE;
    if new_pages > run.pages && run.first + new_pages > PAGES {
        return Ok(());
    }
    let said = sys::remap(span.start, bytes, new_bytes, 0, 0);
    let mut expected = Ok(());
    if new_pages < run.pages {
        let tail = Run {
            first: run.first + new_pages,
            pages: run.pages - new_pages,
        };
        made.extend(arena.unmap(tail));
    } else if new_pages > run.pages {
        if new_pages - run.pages <= arena.free_after(run) {
            arena.grow(run, new_pages);
        } else {
            expected = Err(Errno::ENOMEM);
        }
    }
    same("mremap", &said, &expected)
}

fn move_to(
    arena: &mut Arena,
    run: Run,
    to: usize,
    new_pages: usize,
    keep_old: bool,
    made: &mut Vec<Invalidation>,
) -> Check {
    let span = Span::from(run);
    let bytes = span.end - span.start;
    let mut flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    if keep_old {
        flags |= libc::MREMAP_DONTUNMAP;
    }
    let new_bytes = new_pages as u64 * PAGE;
    let said = sys::remap(span.start, bytes, new_bytes, flags, BASE + to as u64 * PAGE);
    if to < run.first + run.pages && run.first < to + new_pages {
        return same("mremap onto itself", &said, &Err(Errno::EINVAL));
    }
    same("mremap", &said, &Ok(()))?;
    for invalidation in arena.move_to(run, to, new_pages, keep_old) {
        made.extend(invalidation);
    }
    Ok(())
}

fn register2(span: Span, cookie: u64) -> Register2 {
    Register2 {
        start: span.start,
        end: span.end,
        user_cookie: cookie,
        ..Register2::default()
    }
}

/// Makes a step on one file. The step changes no memory of the arena.
fn on_file(file: &mut File, arena: &Arena, op: Op) -> Check {
    match op {
        Op::Exchange { mask, .. } => {
            let fd = &file.fds[file.turn];
            exchange(fd, &mut file.watch, mask)?;
        }
        Op::Register {
            mut span,
            cookie,
            junk,
            empty,
            ..
        } => {
            let region = Register {
                start: span.start,
                end: if empty { span.start } else { span.end },
                user_cookie: cookie,
                flags: junk as u32,
                reserved: (junk >> 32) as u32,
            };
            if empty {
                span.end = span.start + 1;
            }
            let said = sys::register(file.fd(), &region);
            let free = file.watch.register(span, cookie);
            let expected = free.then_some(()).ok_or(Errno::EINVAL);
            same("REGISTER_REGION", &said, &expected)?;
        }
        Op::Register2 {
            span,
            cookie,
            must_be_backed,
            longer,
            ..
        } => {
            let region = Register2 {
                flags: if must_be_backed {
                    abi::MUST_BE_BACKED
                } else {
                    0
                },
                ..register2(span, cookie)
            };
            let longer = usize::from(longer);
            let said = sys::register2(file.fd(), region, size_of::<Register2>() + longer, None);
            let mut expected = Ok(());
            if !file.watch.register(span, cookie) {
                expected = Err(Errno::EINVAL);
            } else if must_be_backed && !arena.is_backed(span) {
                expected = Err(Errno::ENXIO);
                file.watch.unregister(cookie);
            }
            same("REGISTER_REGION2", &said, &expected)?;
        }
        Op::Register2Bad { bad, cookie, .. } => {
            let page = Span {
                start: BASE,
                end: BASE + PAGE,
            };
            let mut region = register2(page, cookie);
            let mut size = size_of::<Register2>();
            let (mut expected, mut tail) = (Errno::EINVAL, None);
            match bad {
                BadRegister2::Flag(bit) => region.flags = 1 << bit,
                BadRegister2::Short(short) => size = usize::from(short),
                BadRegister2::Tail(byte) => {
                    tail = Some(size + usize::from(byte));
                    size += 256;
                    expected = Errno::E2BIG;
                }
                BadRegister2::Huge => {
                    size = PAGE as usize + 1;
                    expected = Errno::E2BIG;
                }
                BadRegister2::Backwards => region.end = region.start - 1,
                BadRegister2::Pointer => expected = Errno::EFAULT,
            }
            let said = match bad {
                BadRegister2::Pointer => sys::register2_nothing(file.fd()),
                _ => sys::register2(file.fd(), region, size, tail),
            };
            same("REGISTER_REGION2", &said, &Err(expected))?;
        }
        Op::RegisterBad { bad, cookie, .. } => {
            let mut region = Register {
                start: BASE,
                end: BASE + PAGE,
                user_cookie: cookie,
                ..Register::default()
            };
            let mut expected = Errno::EINVAL;
            match bad {
                BadRange::Backwards => region.end = region.start - 1,
                BadRange::TooHigh => region.end = 1 << 57,
                BadRange::Kernels => {
                    region.start = 0xffff_8880_0000_0000;
                    region.end = region.start + PAGE;
                }
                BadRange::Endless => region.end = u64::MAX,
                BadRange::Pointer => expected = Errno::EFAULT,
            }
            let said = match bad {
                BadRange::Pointer => sys::register_nothing(file.fd()),
                _ => sys::register(file.fd(), &region),
            };
            same("REGISTER_REGION", &said, &Err(expected))?;
        }
        Op::Unregister { cookie, .. } => {
            let said = sys::unregister(file.fd(), cookie);
            let known = file.watch.unregister(cookie);
            let expected = known.then_some(()).ok_or(Errno::EINVAL);
            same("UNREGISTER_REGION", &said, &expected)?;
        }
        Op::UnregisterNowhere { .. } => {
            let said = sys::unregister_nothing(file.fd());
            same("UNREGISTER_REGION", &said, &Err(Errno::EFAULT))?;
        }
        Op::Unknown { number, .. } => {
            let said = sys::unknown_ioctl(file.fd(), number);
            same("an unknown ioctl", &said, &Err(Errno::ENOTTY))?;
        }
        Op::Read { bytes, room, .. } => {
            read(file, 0, bytes, room)?;
        }
        Op::Drain { .. } => while read(file, 0, PAGE as usize, PAGE as usize)? {},
        Op::Blocking { on, .. } => {
            sys::set_blocking(file.fd(), on).map_err(failed("fcntl"))?;
            file.blocking = on;
        }
        Op::Dup { .. } if file.fds.len() < 4 => {
            let fd = file.fd().try_clone().map_err(failed("dup"))?;
            file.fds.push(fd);
        }
        Op::PassToSelf { .. } if file.fds.len() < 4 => {
            let (here, there) = child::pair().map_err(failed("socketpair"))?;
            child::send(&here, 0, Some(file.fd())).map_err(failed("sendmsg"))?;
            let received = child::receive(&there).map_err(failed("recvmsg"))?;
            let fd = received.and_then(|(_, fd)| fd);
            file.fds
                .push(fd.ok_or("the file descriptor did not arrive")?);
        }
        Op::CloseDup { .. } if file.fds.len() > 1 => {
            file.fds.swap_remove(0);
            file.turn = 0;
        }
        Op::MapCounter { .. } if file.more_counters.len() < 3 => {
            let counter = Counter::map(file.fd()).map_err(failed("mmap"))?;
            file.more_counters.push(counter);
        }
        Op::UnmapCounter { .. } => drop(file.more_counters.pop()),
        Op::MapCounterBadly { bad, .. } => {
            let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
            let (shared, private) = (libc::MAP_SHARED, libc::MAP_PRIVATE);
            let (bytes, protection, flags, offset, expected) = match bad {
                BadMapping::TwoPages => (2 * PAGE, read, shared, 0, Errno::EINVAL),
                BadMapping::SecondPage => (PAGE, read, shared, PAGE, Errno::EINVAL),
                BadMapping::SharedWritable => (PAGE, write, shared, 0, Errno::EACCES),
                BadMapping::PrivateWritable => (PAGE, write, private, 0, Errno::EACCES),
            };
            let said = Counter::map_as(file.fd(), bytes, protection, flags, offset);
            same("mmap", &said.err(), &Some(expected))?;
        }
        Op::AbuseCounter { .. } => {
            let at = file.counter.address();
            let said = sys::protect(at, PAGE, Access::Write);
            same("mprotect", &said, &Err(Errno::EACCES))?;
            let said = sys::remap(at, PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE, 0);
            same("mremap", &said, &Err(Errno::EFAULT))?;
        }
        _ => {}
    }
    Ok(())
}

/// Reads `bytes` bytes into a buffer of which only `room` bytes are writable, and checks the
/// result. Returns true if events arrived and the file is still readable.
pub(crate) fn read(
    file: &mut File,
    buffer: usize,
    bytes: usize,
    room: usize,
) -> Result<bool, String> {
    let max = bytes / size_of::<Event>();
    let due = file.watch.due(max);
    if max > 0 && due.events == 0 && file.blocking {
        return Ok(false);
    }
    let address = buffer_end(buffer) - room as u64;
    let said = sys::read(file.fd(), address, bytes);
    if max == 0 {
        same("read", &said, &Err(Errno::EINVAL))?;
        return Ok(false);
    }
    if due.events == 0 {
        same("read", &said, &Err(Errno::EAGAIN))?;
        return Ok(false);
    }
    let wanted = due.events * size_of::<Event>();
    match said {
        Ok(n) if room >= wanted => same("read", &n, &wanted)?,
        // The driver may return after any number of events that fit before the fault.
        Ok(n) => ensure!(
            n > 0 && n % size_of::<Event>() == 0 && n <= room,
            "read returned {n} with room for {room} of {wanted}"
        ),
        Err(errno) => {
            ensure!(
                errno == Errno::EFAULT && room < wanted,
                "read returned {errno:?} with room for {room} of {wanted}"
            );
            return Ok(false);
        }
    }
    let events = said.unwrap_or(0) / size_of::<Event>();
    file.watch.pick_up(due, events);
    file.watch.arrived(due, &events_at(address, events))?;
    Ok(file.watch.is_readable())
}

/// Returns the events that a read has delivered at this address.
fn events_at(address: u64, events: usize) -> Vec<Event> {
    (0..events)
        .map(|i| {
            let event =
                std::ptr::with_exposed_provenance::<Event>(address as usize).wrapping_add(i);
            // SAFETY: the kernel has written the event at this address, and any bytes form a valid
            // event.
            unsafe { event.read_unaligned() }
        })
        .collect()
}
